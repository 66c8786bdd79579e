"""The routes of batches: `/v1/batches`."""

from smalti.services.web.openai.batches.routes import router

__all__ = ["router"]
