"""Sends a notice: to an address that was checked, without following redirects, and within a time."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

import httpcore2

import smalti
from smalti.services.gateway.webhooks.addresses import is_public
from smalti.services.gateway.webhooks.settings import WebhookSettings

MAX_ADDRESSES: Final = 3
"""Addresses of a name that are tried."""
USER_AGENT: Final = f"smalti/{smalti.__version__}"


class SendingError(Exception):
    """A notice was not taken; the text is one line."""


class Answer(NamedTuple):
    """The answer of a receiver; its body is not read."""

    status: int
    retry_after: float | None
    """Seconds after which the receiver wants to be asked again."""


class Sender:
    """Sends notices. Only its event loop may use it."""

    def __init__(self, settings: WebhookSettings) -> None:
        """Connects to nothing yet."""
        self._timeout = settings.timeout
        self._resolver = ThreadPoolExecutor(settings.together, thread_name_prefix="resolving")
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=_CheckedNetwork(self._resolver, settings),
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Sends a request, and returns its answer.

        Raises:
            SendingError: there is none.
        """
        sent = {
            "user-agent": USER_AGENT,
            "content-type": "application/json",
            "content-length": str(len(body)),
            **headers,
        }
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._pool.stream("POST", url, headers=list(sent.items()), content=body) as response,
            ):
                given = dict(response.headers).get(b"retry-after", b"")
                return Answer(response.status, float(given) if given.isdigit() and len(given) < 8 else None)
        except TimeoutError:
            raise SendingError(f"no answer within {self._timeout:g} s") from None
        except (
            OSError,
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
        ) as error:
            raise SendingError(" ".join(str(error).split())[:200] or type(error).__name__) from error

    async def close(self) -> None:
        """Closes the connections."""
        await self._pool.aclose()
        self._resolver.shutdown(wait=False, cancel_futures=True)


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Looks up names, and connects only to addresses that are allowed: to those, and not to the name again."""

    def __init__(self, resolver: ThreadPoolExecutor, settings: WebhookSettings) -> None:
        self._resolver = resolver
        self._private = settings.private
        self._timeout = settings.timeout
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._resolver, look_up)
        except (OSError, UnicodeError):
            raise SendingError(f"{host} has no address") from None
        addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
        allowed = [each for each in addresses if self._private or is_public(ipaddress.ip_address(each))]
        if not allowed:
            raise SendingError(f"{host} has no public address ({', '.join(addresses[:MAX_ADDRESSES])})")
        problem: Exception | None = None
        tried = allowed[:MAX_ADDRESSES]
        # One that is silent, as IPv6 is behind some networks, leaves time for the next.
        seconds = self._timeout / len(tried)
        for address in tried:
            try:
                return await self._inner.connect_tcp(address, port, seconds, local_address, socket_options)
            except (OSError, httpcore2.NetworkError, httpcore2.TimeoutException) as error:
                problem = error
        raise SendingError(f"{host} does not take connections") from problem
