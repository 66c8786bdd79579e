"""The page at `/`: static files, served under a policy that allows nothing from another host and no inline script."""

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

__all__ = ["mount"]

FOLDER: Final = Path(__file__).parent / "static"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def mount(app: FastAPI) -> None:
    """Serves the files at every path that no route has."""
    # Not a mount, which would hide that a route does not have the method of a request.
    app.router.default = _Page(directory=FOLDER, html=True)


class _Page(StaticFiles):
    """The files with the policy of the page."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"cache-control", b"no-cache")]
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await super().__call__(scope, receive, with_policy)
