"""What the routes work with."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from smalti.client import AsyncClient
from smalti.errors import DrainingError
from smalti.services.web.gateway import Catalogue
from smalti.services.web.jobs import Attendance, Repeats, Walls
from smalti.services.web.pictures import Links
from smalti.services.web.settings import WebSettings
from smalti.telemetry import Metrics


@dataclass(frozen=True, kw_only=True)
class WebContext:
    """What all requests share."""

    settings: WebSettings
    client: AsyncClient
    """The gateway."""
    metrics: Metrics
    catalogue: Catalogue
    attendance: Attendance
    repeats: Repeats
    links: Links
    walls: Walls | None
    """What visitors see being drawn; None if that is switched off."""
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once load balancers must look for another process."""
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the service takes no new requests; streams of events end."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once requests that wait for a job must end."""

    @classmethod
    def make(cls, settings: WebSettings, client: AsyncClient, metrics: Metrics) -> "WebContext":
        """Makes the parts; in the event loop in which they are used."""
        attendance = Attendance(client, metrics, settings.abandon)
        catalogue = Catalogue(client)
        walls = Walls(client, catalogue, prompts=settings.wall_prompts) if settings.wall else None
        return cls(
            settings=settings,
            client=client,
            metrics=metrics,
            catalogue=catalogue,
            attendance=attendance,
            repeats=Repeats(client, attendance, walls.look if walls else None),
            links=Links.of(settings),
            walls=walls,
        )

    async def interrupted(self) -> DrainingError:
        """Waits until requests must end, and returns the error that they end with."""
        await self.stopping.wait()
        return _shutting_down()

    async def drained(self) -> DrainingError:
        """Waits until streams of events must end, and returns the error that they end with."""
        await self.draining.wait()
        return _shutting_down()


def _shutting_down() -> DrainingError:
    return DrainingError("the service is shutting down; the job continues, ask again", 1.0)


def _context(request: Request) -> WebContext:
    context: WebContext = request.app.state.context
    return context


Context = Annotated[WebContext, Depends(_context)]
"""The parameter of a route that takes the context."""

with_key = Security(
    HTTPBearer(
        scheme_name="key",
        description="A key (`sk-smalti-...`) or a token, where the service wants one.",
        auto_error=False,
    )
)
"""Says in the OpenAPI document that requests may have a key, so that `/docs` can send one. The gateway checks it."""
