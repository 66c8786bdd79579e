"""Channels to services, with TLS, load balancing and retries."""

import json
import re
from collections.abc import Sequence
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
