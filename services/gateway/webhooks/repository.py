"""The webhooks of tenants: their secrets, and where they want to be told."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select

from smalti.errors import InvalidInputError
from smalti.services.gateway.database.clock import Clock, to_microseconds
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import Delivery, Tenant, Webhook
from smalti.webhooks import new_secret

KEEP_SECONDS: Final = 24 * 3600.0
"""Time for which the secret before a new one signs, too."""


class WebhookRepository:
    """The webhooks of a database; thread-safe, and every call blocks."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """Takes the database, whose tables must exist, and the clock."""
        self._database = database
        self._clock = clock

    def find(self, tenant: str) -> Webhook | None:
        """Returns the webhook of a tenant; None if it has none, and so no secret."""
        with self._database.read() as session:
            return session.get(Webhook, tenant)

    def set(
        self, tenant: str, *, url: str | None = None, no_url: bool = False, include_prompt: bool | None = None
    ) -> tuple[Webhook, str | None]:
        """Changes the webhook of a tenant, and makes a secret if it has none.

        Args:
            tenant: the tenant.
            url: where jobs that name no URL are told, checked; None leaves it.
            no_url: whether jobs that name no URL are not told.
            include_prompt: whether notices contain the prompt; None leaves it.

        Returns:
            The webhook, and the secret if it is new.

        Raises:
            InvalidInputError: there is no such tenant.
        """
        with self._database.write() as session:
            if session.get(Tenant, tenant) is None:
                raise InvalidInputError("tenant", f"there is no tenant {tenant!r}; create it first")
            found = session.get(Webhook, tenant)
            secret = None
            if found is None:
                secret = new_secret()
                found = Webhook(tenant=tenant, secret=secret, include_prompt=False)
                session.add(found)
            if url is not None or no_url:
                found.url = url
            if include_prompt is not None:
                found.include_prompt = include_prompt
        return found, secret

    def rotate(self, tenant: str, *, keep: float = KEEP_SECONDS) -> str:
        """Makes a new secret, and returns it; the one before signs too for some time. One before that does not.

        Args:
            tenant: the tenant.
            keep: seconds for which the secret before signs, too.

        Raises:
            InvalidInputError: the tenant has no secret.
        """
        with self._database.write() as session:
            found = session.get(Webhook, tenant)
            if found is None:
                raise InvalidInputError("tenant", f"{tenant!r} has no secret; make one with `webhook set`")
            found.former_secret = found.secret
            found.former_until = to_microseconds(self._clock() + keep)
            found.secret = new_secret()
            return found.secret

    def waiting(self, tenant: str, limit: int) -> tuple[int, Sequence[Delivery]]:
        """Returns how many notices of a tenant wait, and the oldest of them."""
        query = select(Delivery).where(Delivery.tenant == tenant)
        with self._database.read() as session:
            number = session.scalar(select(func.count()).select_from(query.subquery())) or 0
            return number, session.scalars(query.order_by(Delivery.created).limit(limit)).all()
