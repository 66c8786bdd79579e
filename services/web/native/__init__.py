"""Our own API: jobs, and their events while they are drawn."""

from smalti.services.web.native.routes import router

__all__ = ["router"]
