"""The context that all parts of the gateway share."""

from dataclasses import dataclass, field

from smalti.queue import Publisher
from smalti.services.gateway.database.clock import Clock, SystemClock, uptime
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.presence import Presence, Role
from smalti.services.gateway.database.rows import RowFeed
from smalti.services.gateway.jobs.observer import JobEvents
from smalti.services.gateway.models import Catalogue
from smalti.services.gateway.policy.content_policy import ContentPolicy
from smalti.services.gateway.settings import GatewaySettings
from smalti.services.gateway.webhooks import WebhookSettings
from smalti.storage import ObjectStore


@dataclass(frozen=True, kw_only=True)
class GatewayContext:
    """The outside things that the gateway works with, its settings, and the channel for notifications."""

    database: Database
    """Database of the jobs. Its tables must exist."""
    store: ObjectStore
    """Store of the objects that the stages exchange, and of pictures."""
    publisher: Publisher
    """Sends chunks to the queues."""
    catalogue: Catalogue
    """The models that can be drawn."""
    settings: GatewaySettings
    """Limits, leases, and intervals."""
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)
    """Limits of notices to webhooks."""
    policy: ContentPolicy = field(default_factory=ContentPolicy)
    """What may be drawn; by default everything."""
    clock: Clock = field(default_factory=SystemClock)
    """Returns the time in seconds since 1970 (UTC). All times that are compared are its; gateways that share a database
    must have one that agrees, which is why it is the database's."""
    elapsed: Clock = uptime
    """Returns seconds that only grow, to notice that this process was suspended."""
    presence: Presence | None = None
    """This gateway among those that share the database; None for a gateway that shares it with nobody."""
    rows: RowFeed | None = None
    """Tells the other gateways of rows of tokens; None for a gateway without others."""
    events: JobEvents = field(default_factory=JobEvents)
    """Notified of every change of a job after it is committed."""
    expiry_days: int = 0
    """Days after which objects of jobs are deleted, whatever the database says; 0 keeps them."""

    def holds(self, role: Role) -> bool:
        """Returns whether this gateway does what a role stands for."""
        return self.presence is None or self.presence.holds(role)

    @property
    def listening(self) -> int:
        """The number of the connection over which changes by other gateways are received; 0 if they are not."""
        return self.presence.listening if self.presence is not None else 0
