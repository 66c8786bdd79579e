"""Channels to services, with TLS, load balancing and retries."""

import asyncio
import json
import re
from collections.abc import AsyncIterable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import grpc

from smalti.errors import InvalidInputError
from smalti.network import WatchedFiles, is_this_machine
from smalti.rpc.renewal import RenewedBlockingChannel, RenewedChannel
from smalti.rpc.settings import RpcSettings, message_options, rpc_settings
from smalti.rpc.tls import channel_credentials, channel_files

_TARGET = re.compile(r"(?:dns:///)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/\s]+):(?P<port>\d{1,5})")


def channel(
    target: str,
    settings: RpcSettings | None = None,
    *,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """Returns a channel for the running event loop. It connects when it is first used.

    Only calls that fail with UNAVAILABLE are retried, with exponential backoff. Renewed certificates are used for new
    calls.

    Args:
        target: host:port, or dns:///host:port; if the host has several addresses, calls use them in turn.
        settings: None reads them from the environment.
        interceptors: interceptors of every call, such as those for traces.

    Raises:
        InvalidInputError: the target or a setting is invalid; names the field or the variable.
    """
    settings = settings or rpc_settings()
    host = _host(target)
    options = _options(settings, host)
    interceptors = [*interceptors, _StreamSender()]

    def make() -> grpc.aio.Channel:
        credentials = channel_credentials(settings, host)
        if credentials is None:
            return grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
        return grpc.aio.secure_channel(target, credentials, options=options, interceptors=interceptors)

    files = channel_files(settings)
    return RenewedChannel(make, WatchedFiles(files)) if files else make()


def blocking_channel(target: str, settings: RpcSettings | None = None) -> grpc.Channel:
    """Returns a blocking channel, which is otherwise like that of `channel`."""
    settings = settings or rpc_settings()
    host = _host(target)
    options = _options(settings, host)

    def make() -> grpc.Channel:
        credentials = channel_credentials(settings, host)
        if credentials is None:
            return grpc.insecure_channel(target, options=options)
        return grpc.secure_channel(target, credentials, options=options)

    files = channel_files(settings)
    return RenewedBlockingChannel(make, WatchedFiles(files)) if files else make()


class _StreamSender(grpc.aio.StreamUnaryClientInterceptor):
    """Sends the messages of calls that take a stream, so that a refused call raises the server's status.

    A server may refuse a call while a message is on its way. grpc.aio then puts INTERNAL, for the failed message, in
    place of the status, or cancels the call. `write` of these calls cannot be used: they take an iterator.
    """

    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        call = await continuation(client_call_details, None)
        ends: list[grpc.aio.AioRpcError] = []
        # Called for every status that the call gets, before another can replace it.
        call.add_done_callback(lambda ended: ends.append(_end_of(ended)))
        sending = asyncio.ensure_future(_send(call, request_iterator))
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise next((end for end in ends if not _is_of_failed_message(end)), error) from None
        except asyncio.CancelledError:
            if sending.done() and not sending.cancelled() and (failure := sending.exception()) is not None:
                raise failure from None
            raise
        finally:
            sending.cancel()
            await asyncio.wait([sending])
        return call


async def _send(call: Any, requests: Any) -> None:
    """Sends messages until the call has ended; if the iterator fails, cancels the call and raises the failure."""
    try:
        if isinstance(requests, AsyncIterable):
            async for request in requests:
                if not await _is_sent(call.write(request)):
                    return
        else:
            for request in requests:
                if not await _is_sent(call.write(request)):
                    return
    except BaseException:
        call.cancel()
        raise
    await _is_sent(call.done_writing())


async def _is_sent(sending: Coroutine[Any, Any, None]) -> bool:
    """Returns whether the call has taken a message; if it has not, it has ended, and its status says why."""
    with suppress(grpc.RpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
        await sending
        return True
    return False


def _end_of(call: Any) -> grpc.aio.AioRpcError:
    """Returns the present status of a call that has ended."""
    return grpc.aio.AioRpcError(
        _known(call.code()),
        _known(call.initial_metadata()),
        _known(call.trailing_metadata()),
        details=_known(call.details()),
        debug_error_string=_known(call.debug_error_string()),
    )


def _known(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Returns the result of a coroutine that has nothing to wait for, outside of any task."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    raise RuntimeError("the call has not ended")


def _is_of_failed_message(end: grpc.aio.AioRpcError) -> bool:
    """Returns whether gRPC itself may have made a status; servers send details with theirs."""
    return end.code() is grpc.StatusCode.INTERNAL and not end.trailing_metadata()


def _host(target: str) -> str:
    match = _TARGET.fullmatch(target)
    if match is None or int(match["port"]) > 65535:
        raise InvalidInputError("server", f"{target!r} must have the form host:port")
    return match["host"]


def _options(settings: RpcSettings, host: str) -> list[tuple[str, Any]]:
    options = [*message_options(settings), ("grpc.service_config", json.dumps(service_config(settings)))]
    # Otherwise channels of one process share connections, and a new one fails during the pause of another.
    options.append(("grpc.use_local_subchannel_pool", 1))
    if is_this_machine(host):
        options.append(("grpc.enable_http_proxy", 0))  # A proxy of the environment is for other machines.
    if settings.tls_server_name is not None:
        options.append(("grpc.ssl_target_name_override", settings.tls_server_name))
    return options


def service_config(settings: RpcSettings) -> dict[str, Any]:
    """Returns gRPC's service config; clients in other languages may use its retry policy as it is."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if settings.attempts > 1:
        config["methodConfig"] = [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": settings.attempts,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
        # If most calls fail, retries must not multiply the load.
        config["retryThrottling"] = {"maxTokens": 20, "tokenRatio": 0.5}
    return config
