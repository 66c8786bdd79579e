"""The caller of the current request, on whose behalf the gateway is called."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import grpc
from pydantic import SecretStr

from smalti.network import network_of
from smalti.rpc.observer import REQUEST_ID, with_metadata
from smalti.rpc.places import CLIENT


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who makes a request."""

    address: str
    """The address of the client; that of the proxy's client behind a trusted proxy."""
    request_id: str
    authorization: str = ""
    """The header `Authorization`, which the gateway checks."""

    @property
    def network(self) -> str:
        """The network that counts as one client."""
        return network_of(self.address)

    def metadata(self) -> Mapping[str, str]:
        """Returns the metadata of calls to the gateway."""
        given = {CLIENT: self.address, REQUEST_ID: self.request_id, "authorization": self.authorization}
        return {key: value for key, value in given.items() if value}


current_caller: ContextVar[Caller] = ContextVar("current_caller")


class UnaryMetadata(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds the caller to calls with one response."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: D102
        return await continuation(_with_caller(client_call_details), request)


class StreamMetadata(grpc.aio.UnaryStreamClientInterceptor):
    """Adds the caller to calls with a stream of responses."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:  # noqa: D102
        return await continuation(_with_caller(client_call_details), request)


class UploadMetadata(grpc.aio.StreamUnaryClientInterceptor):
    """Adds the caller to calls with a stream of requests."""

    async def intercept_stream_unary(  # noqa: D102
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await continuation(_with_caller(client_call_details), request_iterator)


@contextmanager
def calling_with(key: SecretStr | None) -> Iterator[None]:
    """Calls the gateway in the block with a key in place of the caller's; None leaves that."""
    if key is None:
        yield
        return
    caller = replace(current_caller.get(), authorization=f"Bearer {key.get_secret_value()}")
    token = current_caller.set(caller)
    try:
        yield
    finally:
        current_caller.reset(token)


def _with_caller(details: Any) -> Any:
    caller = current_caller.get(None)
    return details if caller is None else with_metadata(details, caller.metadata())
