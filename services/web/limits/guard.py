"""The limits of a request: refusals before it is read, the size and time of its body, the time of its answer."""

import asyncio
import re
from contextlib import ExitStack
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smalti.errors import AuthenticationError, DrainingError, SmaltiError
from smalti.services.web.failures import HttpError, failure_of
from smalti.services.web.gateway import current_caller
from smalti.services.web.limits.clients import ClientLimits
from smalti.services.web.pictures import PATH
from smalti.services.web.settings import WebSettings
from smalti.telemetry import audit

EXEMPT = ("/healthz", "/readyz")
"""Paths that are answered whatever the limits."""
APIS = ("/v1/", "/api/")
"""What the paths begin with that want a key, where keys are wanted."""
SIGNED = re.compile(PATH.format(id="[^/]+"))
"""Paths whose URLs are signed instead."""
UPLOADS = ("/v1/images/edits", "/v1/images/variations")
"""Paths that take pictures, so that their bodies may be larger."""
FILES = re.compile(r"/v1/files|/v1/uploads/[^/]+/parts")
"""Paths that take files, whose bodies go to the disk while they arrive."""


class Guard:
    """ASGI middleware that applies the limits."""

    def __init__(
        self,
        app: ASGIApp,
        settings: WebSettings,
        clients: ClientLimits,
        draining: asyncio.Event,
        *,
        wants_key: bool = False,
    ) -> None:
        """Guards an application.

        Args:
            app: the application.
            settings: the limits.
            clients: counts the requests of each client.
            draining: set once no new requests are taken.
            wants_key: whether the APIs want a key or a token, which the gateway looks at.
        """
        self._app = app
        self._settings = settings
        self._clients = clients
        self._draining = draining
        self._wants_key = wants_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http" or scope["path"] in EXEMPT:
            await self._app(scope, receive, send)
            return
        with ExitStack() as stack:
            try:
                self._check_draining()
                stack.enter_context(self._clients.request(current_caller.get().network))
                self._check_key(scope["method"], scope["path"])
                max_bytes = self._max_bytes(scope["path"])
                _check_length(Headers(scope=scope), max_bytes)
            except (SmaltiError, HTTPException) as error:
                await failure_of(error).response(scope["path"])(scope, receive, send)
                return
            body = _Body(receive, max_bytes, self._seconds(scope["path"]))
            await self._app(scope, body.receive, self._limited(send))

    def _check_draining(self) -> None:
        if self._draining.is_set():
            raise DrainingError("the service is shutting down; try again", 1.0)

    def _check_key(self, method: str, path: str) -> None:
        if not self._wants_key or current_caller.get().authorization:
            return
        if path.startswith(APIS) and not SIGNED.fullmatch(path):
            audit.write("refused", method=f"{method} {path[:100]}", reason="UNAUTHENTICATED", why="no key")
            raise AuthenticationError("the request has no key: send it as authorization: Bearer KEY")

    def _max_bytes(self, path: str) -> int:
        if FILES.fullmatch(path):
            return self._settings.file_bytes
        return self._settings.upload_bytes if path in UPLOADS else self._settings.body_bytes

    def _seconds(self, path: str) -> float:
        return self._settings.file_timeout if FILES.fullmatch(path) else self._settings.body_timeout

    def _limited(self, send: Send) -> Send:
        async def limited(message: Message) -> None:
            try:
                async with asyncio.timeout(self._settings.send_timeout):
                    await send(message)
            except TimeoutError:
                # The server closes the connection of a request that was cancelled in mid-answer.
                raise SlowClientError from None

        return limited


class SlowClientError(Exception):
    """The client does not take the answer; the connection must be closed."""


class _Body:
    """The body of a request, which must arrive in time and be small enough."""

    def __init__(self, receive: Receive, max_bytes: int, seconds: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._seconds = seconds
        self._bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()  # Waits for the end of the connection.
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HttpError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body did not arrive within {self._seconds:g} s",
                reason="BODY_TIMEOUT",
                connection="close",
            ) from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._bytes > self._max_bytes:
                raise _too_large(self._max_bytes)
        return message


def _check_length(headers: Headers, max_bytes: int) -> None:
    length = headers.get("content-length", "")
    if length.isdigit() and int(length[:19]) > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> HttpError:
    return HttpError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has more than {max_bytes} bytes, the maximum",
        reason="BODY_TOO_LARGE",
        connection="close",
    )
