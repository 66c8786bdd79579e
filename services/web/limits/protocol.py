"""HTTP/1.1 connections with a limit that uvicorn does not have: the time for a header."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from smalti.services.web.settings import WebSettings


def protocol_class(settings: WebSettings) -> type[asyncio.Protocol]:
    """Returns uvicorn's protocol with this limit."""

    class LimitedProtocol(H11Protocol):
        """Closes a connection that sends no complete header in time, so that slow clients cannot hold connections."""

        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch_header()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_header()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _watch_header(self) -> None:
            """Starts the timer of a new connection or header; stops it once the header is there."""
            if self._in_request():
                self._stop_timer()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(settings.header_timeout, self._close_slow)

        def _in_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _stop_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _close_slow(self) -> None:
            self._header_timer = None
            if not self._in_request() and not self.transport.is_closing():
                self.transport.abort()

    return LimitedProtocol
