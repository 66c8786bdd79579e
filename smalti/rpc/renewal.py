"""Channels that open a new connection when their certificates were renewed.

gRPC in Python reads the certificates of a channel once. These channels open another one when the files have changed:
new calls take the new one, and running calls end on the old one.
"""

import asyncio
import logging
import threading
from abc import abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import grpc

from smalti.errors import InvalidInputError
from smalti.network import WatchedFiles

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 3600.0
"""Time for the calls of an old channel to end."""

AnyChannel = TypeVar("AnyChannel", grpc.Channel, grpc.aio.Channel)


class _Current(Generic[AnyChannel]):
    """The channel with the newest certificates; thread-safe."""

    def __init__(self, make: Callable[[], AnyChannel], files: WatchedFiles) -> None:
        self._make: Callable[[], AnyChannel] = make
        self._files = files
        self._lock = threading.Lock()
        self.channel: AnyChannel = make()

    def renewed(self) -> AnyChannel | None:
        """Opens a new channel if the files have changed, and returns the old one; otherwise returns None."""
        with self._lock:
            if not self._files.changed():
                return None
            try:
                new = self._make()
            except InvalidInputError as error:  # Perhaps half of the files were replaced so far.
                log.warning("the renewed certificate cannot be used yet: %s", error)
                return None
            log.info("calls use the renewed certificates")
            old, self.channel = self.channel, new
            return old


class _Method:
    """A method of the newest channel."""

    def __init__(self, newest: Callable[[], Any], kind: str, arguments: Any, options: Any) -> None:
        self._newest, self._kind, self._arguments, self._options = newest, kind, arguments, options
        self._of: Any = None
        self._callable: Any = None

    def _current(self) -> Any:
        channel = self._newest()
        if channel is not self._of:
            self._callable = getattr(channel, self._kind)(*self._arguments, **self._options)
            self._of = channel
        return self._callable

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._current()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:  # `future` and `with_call` of blocking channels.
        return getattr(self._current(), name)


class _Methods:
    """The methods of a channel, each a method of the newest one."""

    @abstractmethod
    def newest(self) -> Any:
        """Returns the channel for a new call."""

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self.newest, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self.newest, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self.newest, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self.newest, "stream_stream", arguments, options)


class RenewedChannel(_Methods, grpc.aio.Channel):
    """A channel for the running event loop."""

    def __init__(self, make: Callable[[], grpc.aio.Channel], files: WatchedFiles) -> None:
        """Opens the first channel.

        Args:
            make: opens a channel with the certificates in the files.
            files: the files of the certificates.
        """
        self._current = _Current(make, files)
        self._retired: set[asyncio.Task[None]] = set()

    def newest(self) -> grpc.aio.Channel:
        """Returns the channel for a new call."""
        if (old := self._current.renewed()) is not None:
            retired = asyncio.ensure_future(old.close(GRACE_SECONDS))
            self._retired.add(retired)
            retired.add_done_callback(self._retired.discard)
        return self._current.channel

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:  # noqa: D102
        for retired in list(self._retired):
            retired.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        await self._current.channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: D102
        return self.newest().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:  # noqa: D102
        await self.newest().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:  # noqa: D102
        await self.newest().channel_ready()


class RenewedBlockingChannel(_Methods, grpc.Channel):
    """A blocking channel; an old one closes by itself when its last call has ended."""

    def __init__(self, make: Callable[[], grpc.Channel], files: WatchedFiles) -> None:
        """Opens the first channel; see `RenewedChannel`."""
        self._current = _Current(make, files)

    def newest(self) -> grpc.Channel:
        """Returns the channel for a new call."""
        self._current.renewed()
        return self._current.channel

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: D102
        self._current.channel.close()

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:  # noqa: D102
        self.newest().subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:  # noqa: D102
        self._current.channel.unsubscribe(callback)
