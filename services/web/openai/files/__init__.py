"""The routes of files: `/v1/files`, and `/v1/uploads` for files in parts."""

from smalti.services.web.openai.files.routes import router
from smalti.services.web.openai.files.schema import ExpiresAfter, Identifier, retention_of

__all__ = ["ExpiresAfter", "Identifier", "retention_of", "router"]
