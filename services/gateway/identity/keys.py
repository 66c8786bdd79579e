"""Keys in the database. What is kept of a key is its SHA-256: nobody can read it again."""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from typing import Final

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from smalti.errors import InvalidInputError
from smalti.services.gateway.database import schema
from smalti.services.gateway.database.clock import MICROSECONDS, Clock, SystemClock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import MAX_ID_LENGTH, ApiKey, Tenant
from smalti.services.gateway.identity.principal import Role

PREFIX: Final = "sk-smalti-"
"""What every key begins with, so that scanners find a key that was published by mistake."""
KEY_BYTES: Final = 32
ID_LENGTH: Final = 16
"""Hexadecimal digits of the SHA-256 that name a key in lists and logs."""
MAX_NOTE_LENGTH: Final = 100
DAY: Final = 24 * 3600 * MICROSECONDS
_TENANT: Final = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_ID_LENGTH - 1}}}")


def digest_of(key: str) -> str:
    """Returns the SHA-256 of a key."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()


def id_of(digest: str) -> str:
    """Returns the name of a key, which gives nothing of it away."""
    return digest[:ID_LENGTH]


def check_tenant(name: str, field: str) -> str:
    """Returns the name of a tenant; raises `InvalidInputError` if it has another form."""
    if _TENANT.fullmatch(name):
        return name
    raise InvalidInputError(
        field, f"must be 1 to {MAX_ID_LENGTH} characters of a-z, 0-9, '.', '_' and '-', got {name[:70]!r}"
    )


class KeyRepository:
    """The keys of a database; thread-safe, and every call blocks."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        """Takes the database, whose tables must exist, and the clock."""
        self._database = database
        self._clock = clock or SystemClock()

    def create(
        self, tenant: str, roles: Iterable[Role], *, note: str = "", new_tenant: bool = False
    ) -> tuple[str, ApiKey]:
        """Makes a key; returns the key itself, which is not kept, and what is kept of it.

        Args:
            tenant: the tenant to which it belongs.
            roles: what it may do.
            note: what it is for.
            new_tenant: whether to make the tenant if there is none.

        Raises:
            InvalidInputError: there is no such tenant, or the roles cannot be had together.
            DatabaseUnavailableError: the database does not answer.
        """
        chosen = sorted(set(roles))
        if not chosen:
            raise InvalidInputError("roles", f"give at least one of {', '.join(Role)}")
        if Role.WEB in chosen and len(chosen) > 1:
            raise InvalidInputError(
                "roles", "web is for the web service alone; make another key for the others"
            )
        if len(note) > MAX_NOTE_LENGTH:
            raise InvalidInputError(
                "note", f"must have at most {MAX_NOTE_LENGTH} characters, got {len(note)}"
            )
        key = f"{PREFIX}{urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode().rstrip('=')}"
        digest = digest_of(key)
        with self._database.write() as session:
            if not _has_tenant(session, tenant):
                if not new_tenant:
                    raise InvalidInputError(
                        "tenant", f"there is no tenant {tenant!r}; add --new-tenant to make it"
                    )
                session.execute(insert(Tenant).values(id=check_tenant(tenant, "tenant")))
                schema.require(session, schema.TENANTS)
            kept = ApiKey(
                id=id_of(digest),
                sha256=digest,
                tenant=tenant,
                roles=",".join(chosen),
                note=note,
                created=to_microseconds(self._clock()),
            )
            session.add(kept)
        return key, kept

    def find(self, key: str) -> ApiKey | None:
        """Returns what is kept of a key, revoked or not; None for one that was never made here."""
        digest = digest_of(key)
        with self._database.read() as session:
            kept = session.get(ApiKey, id_of(digest))
        # The comparison takes equally long wherever they differ.
        return kept if kept is not None and hmac.compare_digest(kept.sha256, digest) else None

    def note_use(self, kept: ApiKey) -> bool:
        """Notes that a key was used today; returns whether that was not known yet."""
        today = to_microseconds(self._clock()) // DAY * DAY
        if kept.last_used is not None and kept.last_used >= today:
            return False
        with self._database.write() as session:
            session.execute(update(ApiKey).where(ApiKey.id == kept.id).values(last_used=today))
        return True

    def list(self, tenant: str | None = None) -> Sequence[ApiKey]:
        """Returns the keys of a tenant, or all, the oldest first."""
        query = select(ApiKey).order_by(ApiKey.created, ApiKey.id)
        with self._database.read() as session:
            return session.scalars(query if tenant is None else query.where(ApiKey.tenant == tenant)).all()

    def revoke(self, key_id: str) -> ApiKey | None:
        """Revokes a key, and returns it as it was before; None if there is none with this id."""
        with self._database.write() as session:
            kept = session.get(ApiKey, key_id)
            if kept is None:
                return None
            session.expunge(kept)
            session.execute(
                update(ApiKey)
                .where(ApiKey.id == key_id, ApiKey.revoked.is_(None))
                .values(revoked=to_microseconds(self._clock()))
            )
        return kept

    def has_tenant(self, tenant: str) -> bool:
        """Returns whether there is a tenant of this name."""
        with self._database.read() as session:
            return _has_tenant(session, tenant)


def roles_of(kept: ApiKey) -> frozenset[Role]:
    """Returns the roles of a key; those of a newer version are left out."""
    return frozenset(Role(each) for each in kept.roles.split(",") if each in list(Role))


def _has_tenant(session: Session, tenant: str) -> bool:
    return session.get(Tenant, tenant) is not None
