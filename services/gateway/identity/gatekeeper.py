"""The gatekeeper: finds out who makes a call, and checks the table of roles, before the request is received."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from typing import Any, Final

from smalti.errors import AuthenticationError, DatabaseUnavailableError, PermissionDeniedError
from smalti.parameters import Priority
from smalti.rpc.identity import bearer, names_of
from smalti.services.gateway.database.calls import call_database
from smalti.services.gateway.identity.keys import PREFIX, KeyRepository, digest_of, id_of, roles_of
from smalti.services.gateway.identity.principal import (
    ANYONE,
    PRIORITY_ROLES,
    ROLES,
    Principal,
    Role,
    check_role,
    principal_of_call,
)
from smalti.services.gateway.identity.ways import Evidence, holder
from smalti.settings import Auth
from smalti.telemetry import audit

log = logging.getLogger(__name__)

KNOWN_SECONDS: Final = 5.0
"""Time for which a key is remembered; one that is revoked works for so long at other gateways, and at this."""
MAX_KNOWN: Final = 10_000


class Gatekeeper:
    """A `smalti.rpc.identity.Authenticate` of the gateway. Only the event loop may use it."""

    def __init__(
        self,
        evidence: Evidence,
        *,
        keys: KeyRepository,
        threads: Executor,
        seconds: float,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes what it decides by.

        Args:
            evidence: what shows who callers are.
            keys: the keys.
            threads: runs calls of the database.
            seconds: time that such a call may take.
            elapsed: returns seconds that only grow.
        """
        self._ways = evidence.ways
        self._tokens = evidence.tokens
        self._names = evidence.names
        self._keys = keys
        self._threads = threads
        self._seconds = seconds
        self._elapsed = elapsed
        self._known: dict[str, tuple[float, Principal]] = {}
        self._tenants: dict[str, float] = {}

    async def __call__(self, method: str, metadata: Mapping[str, str], context: Any) -> None:
        """Makes the principal of a call, and checks its roles; see `smalti.rpc.identity.Authenticate`."""
        if not self._ways:
            principal_of_call.set(ANYONE)
            return
        name = method.rpartition("/")[2]
        try:
            principal = await self._principal(metadata, context)
        except AuthenticationError as error:
            key = _key_id(metadata)
            audit.write(
                "refused", method=name, reason="UNAUTHENTICATED", why=str(error), key=key, peer=context.peer()
            )
            raise
        try:
            check_role(principal, ROLES.get(method), name)
        except PermissionDeniedError as error:
            report(
                "refused", principal, method=name, reason="NOT_PERMITTED", why=str(error), peer=context.peer()
            )
            raise
        report("called", principal, method=name, peer=context.peer())
        principal_of_call.set(principal)

    async def _principal(self, metadata: Mapping[str, str], context: Any) -> Principal:
        if self._ways & {Auth.KEYS, Auth.JWT} and (token := bearer(metadata)):
            if Auth.KEYS in self._ways and (token.startswith(PREFIX) or self._tokens is None):
                return await self._of_key(token)
            if self._tokens is None:
                raise AuthenticationError("the key is unknown, mistyped or revoked")
            found = await asyncio.to_thread(self._tokens.principal, token)
            return await self._of_known_tenant(found)
        if Auth.MTLS in self._ways:
            return await self._of_certificate(names_of(context))
        ways = {Auth.KEYS: "a key", Auth.JWT: "a token"}
        wanted = " or ".join(text for way, text in ways.items() if way in self._ways)
        raise AuthenticationError(f"the call has no key: send {wanted} as authorization: Bearer ...")

    async def _of_certificate(self, names: Collection[str]) -> Principal:
        for name in names:
            if name in self._names:
                return await self._of_known_tenant(self._names[name])
        # Where there are keys, a web service may pass on calls without one, and its certificate is not its callers'.
        if self._names or self._ways != {Auth.MTLS}:
            raise AuthenticationError(
                "no tenant has a name of this certificate; send a key, or use another one"
            )
        return holder(next(iter(names), ""))

    async def _of_key(self, key: str) -> Principal:
        digest = digest_of(key)
        until, principal = self._known.get(digest, (0.0, None))
        if principal is not None and self._elapsed() < until:
            return principal
        kept = await call_database(self._threads, self._seconds, self._keys.find, key)
        if kept is None or kept.revoked is not None:
            self._known.pop(digest, None)
            raise AuthenticationError("the key is unknown, mistyped or revoked")
        try:
            await call_database(self._threads, self._seconds, self._keys.note_use, kept)
        except DatabaseUnavailableError as error:
            log.warning("the use of key %s could not be noted: %s", kept.id, error)
        principal = Principal(tenant=kept.tenant, roles=roles_of(kept), name=f"key {kept.id}")
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[digest] = (self._elapsed() + KNOWN_SECONDS, principal)
        return principal

    async def _of_known_tenant(self, principal: Principal) -> Principal:
        """Returns a principal whose tenant exists; raises `PermissionDeniedError` for another."""
        if self._elapsed() >= self._tenants.get(principal.tenant, 0.0):
            if not await call_database(self._threads, self._seconds, self._keys.has_tenant, principal.tenant):
                raise AuthenticationError(
                    f"{principal.name} names the tenant {principal.tenant!r:.70}, which does not exist"
                )
            self._tenants[principal.tenant] = self._elapsed() + KNOWN_SECONDS
        return principal


def check_priority(principal: Principal, priority: Priority) -> None:
    """Raises `PermissionDeniedError` unless a principal may create jobs of a priority."""
    try:
        check_role(principal, PRIORITY_ROLES[priority], f"a job of priority {priority.value}")
    except PermissionDeniedError as error:
        report("refused", principal, method="CreateImages", reason="NOT_PERMITTED", why=str(error))
        raise


def report(event: str, principal: Principal, **fields: Any) -> None:
    """Writes a line about a principal to the audit log."""
    audit.write(event, who=principal.name, tenant=principal.tenant, roles=sorted(principal.roles), **fields)


def report_admin(principal: Principal, method: str, owner: str, **what: str) -> None:
    """Tells the audit log what an admin does with something of another tenant, its owner; `what` is its id."""
    if owner != principal.tenant and Role.ADMIN in principal.roles:
        report("admin", principal, method=method, **what, owner=owner)


def _key_id(metadata: Mapping[str, str]) -> str | None:
    """Returns the name of the key of a call for the audit log; None if it has none."""
    try:
        token = bearer(metadata)
    except AuthenticationError:
        return None
    return id_of(digest_of(token)) if token.startswith(PREFIX) else None
