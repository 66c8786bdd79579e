"""The OpenAI API: pictures from prompts, models, and the files of pictures."""

from smalti.services.web.openai.routes import router

__all__ = ["router"]
