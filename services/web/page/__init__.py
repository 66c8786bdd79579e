"""The page at `/`: static files, served under a policy that allows nothing from another host and no inline script."""

from typing import Final

from fastapi import FastAPI

from smalti.services.web.page.files import FOLDER, PageFiles

__all__ = ["FOLDER", "PageFiles", "mount"]

_FILES: Final = PageFiles.load(FOLDER)


def mount(app: FastAPI) -> None:
    """Serves the files at paths that no route has."""
    # Not a mount, which would hide that a route does not have the method of a request.
    app.router.default = _FILES
