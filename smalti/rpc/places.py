"""What one peer may use of a server: its calls, its streams, and the memory of its requests.

A peer is an address, or the client that a trusted peer, such as the web service, names for a call.
"""

import asyncio
import ipaddress
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote
from weakref import WeakValueDictionary

from smalti.errors import InvalidInputError, OverloadedError, RequestExpiredError
from smalti.network import network_of
from smalti.rpc.settings import MEBIBYTE, RpcSettings
from smalti.settings import listed

CLIENT: Final = "x-forwarded-for"
"""The metadata key with which the web service names the address of its client."""
RETRY_SECONDS: Final = 1.0
KEPT_SHARE: Final = 0.1
"""Share of the places that is kept for short calls, so that a job can be found and cancelled on a full server."""
PEER_RECEIVES: Final = 16
"""Requests of a peer that are received at the same time; further ones wait."""
RECEIVE_SECONDS: Final = 10.0
"""Time within which a request must have arrived."""
SMALL_REQUEST: Final = MEBIBYTE
"""Bytes of a request to a method that takes no pictures."""


@dataclass(frozen=True, kw_only=True)
class CallKinds:
    """What is special about methods, each named as in "/smalti.v1.ImageService/WatchJob"."""

    endless: Collection[str] = ()
    """They do not end by themselves: they have places of their own, and the drain interrupts them."""
    kept: Collection[str] = ()
    """A part of the places is kept for them."""
    small: Collection[str] = ()
    """Their requests have at most `SMALL_REQUEST` bytes."""


@dataclass(frozen=True)
class Peer:
    """Who makes a call."""

    name: str
    trusted: bool = False
    """Whether it calls for many others, without naming one. Then only the limits of the server hold, not those of a
    peer."""


class Places:
    """Counts the calls in progress. Only the event loop may use it."""

    def __init__(self, settings: RpcSettings, kinds: CallKinds) -> None:
        self._settings = settings
        self._kinds = kinds
        self._trusted = [ipaddress.ip_network(each) for each in listed(settings.trusted_peers)]
        self._calls: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._receiving = asyncio.Semaphore(settings.receiving)
        self._peers: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @property
    def running(self) -> int:
        """Number of calls in progress."""
        return self._calls.total() + self._streams.total()

    def peer(self, address: str, metadata: Mapping[str, str]) -> Peer:
        """Returns who makes a call.

        Args:
            address: the address as gRPC has it, such as `ipv4:192.0.2.1:50000`.
            metadata: the metadata of the call.
        """
        host = unquote(address.partition(":")[2]).rpartition(":")[0].strip("[]")
        if not self._is_trusted(host):
            return Peer(network_of(host))
        named = metadata.get(CLIENT, "")[:64]
        return Peer(network_of(named)) if named else Peer(host, trusted=True)

    @contextmanager
    def call(self, method: str, peer: Peer) -> Iterator[None]:
        """Counts a call while the block runs.

        Raises:
            OverloadedError: the server or the peer has too many.
        """
        settings = self._settings
        if method in self._kinds.endless:
            counted, limit, of_peer = self._streams, settings.max_streams, settings.peer_streams
        else:
            counted, limit, of_peer = self._calls, settings.max_calls, settings.peer_calls
            if self._kinds.kept and method not in self._kinds.kept:
                limit -= int(limit * KEPT_SHARE)
                of_peer -= int(of_peer * KEPT_SHARE)
        if peer.trusted:
            of_peer = limit
        total = counted.total()
        if total >= limit:
            problem = f"{total} calls are already in progress"
        elif counted[peer.name] >= of_peer:
            problem = f"{counted[peer.name]} calls of this client are already in progress"
        else:
            problem = ""
        if problem:
            raise OverloadedError(f"{problem}; try again in {RETRY_SECONDS:.0f} s", RETRY_SECONDS)
        counted[peer.name] += 1
        try:
            yield
        finally:
            _subtract(counted, peer, 1)

    @asynccontextmanager
    async def receive(self, peer: Peer) -> AsyncIterator[None]:
        """Waits until a request may be received, so that few are in memory before they are checked.

        Raises:
            OverloadedError: too many others are received.
            RequestExpiredError: the request has not arrived in time.
        """
        own: AbstractAsyncContextManager[object] = nullcontext()
        if not peer.trusted:
            own = self._peers.setdefault(peer.name, asyncio.Semaphore(PEER_RECEIVES))
        began = False
        limit = asyncio.timeout(RECEIVE_SECONDS)
        try:
            async with limit, own, self._receiving:
                began = True
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            if began:
                problem = f"the request did not arrive within {RECEIVE_SECONDS:g} s"
                raise RequestExpiredError(problem) from None
            raise OverloadedError("too many requests arrive; try again", RETRY_SECONDS) from None

    @contextmanager
    def request(self, method: str, peer: Peer, size: int) -> Iterator[None]:
        """Counts the bytes of a request while the block runs.

        Raises:
            InvalidInputError: it is too large for its method.
            OverloadedError: the requests in progress have too many bytes.
        """
        if method in self._kinds.small and size > SMALL_REQUEST:
            raise InvalidInputError("request", f"must have at most {SMALL_REQUEST} bytes, got {size}")
        limit = self._settings.request_bytes
        of_peer = limit if peer.trusted else limit // 2 + SMALL_REQUEST
        if self._bytes.total() + size > limit or self._bytes[peer.name] + size > of_peer:
            raise OverloadedError("too many large requests are in progress; try again", RETRY_SECONDS)
        self._bytes[peer.name] += size
        try:
            yield
        finally:
            _subtract(self._bytes, peer, size)

    def _is_trusted(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _subtract(counted: Counter[str], peer: Peer, amount: int) -> None:
    counted[peer.name] -= amount
    if not counted[peer.name]:
        del counted[peer.name]  # Otherwise it grows with every address that ever called.
