"""The page at `/`: static files, served under a policy that allows nothing from another host and no inline script."""

from fastapi import FastAPI

from smalti.services.web.page.files import FOLDER, PageFiles
from smalti.services.web.settings import WebSettings

__all__ = ["FOLDER", "PageFiles", "mount"]


def mount(app: FastAPI, settings: WebSettings) -> None:
    """Serves the files at paths that no route has."""
    shown = "prompts" if settings.wall_prompts else "on"
    # Not a mount, which would hide that a route does not have the method of a request.
    app.router.default = PageFiles.load(FOLDER, wall=shown if settings.wall else "")
