"""The routes of files: `/v1/files`, and `/v1/uploads` for files in parts."""

from smalti.services.web.openai.files.routes import router

__all__ = ["router"]
