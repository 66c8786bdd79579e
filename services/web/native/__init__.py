"""Our own API: jobs, and their events while they are drawn."""

from smalti.services.web.native.routes import router
from smalti.services.web.native.wall import wall_router

__all__ = ["router", "wall_router"]
