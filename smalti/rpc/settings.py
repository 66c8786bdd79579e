"""The settings of gRPC servers and channels; each is read from the variable `SMALTI_RPC_<NAME>`."""

import socket
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from smalti.network import address_of
from smalti.settings import (
    PREFIX,
    EnvironmentSettings,
    Host,
    Seconds,
    SecondsOrNone,
    check_networks,
    read_settings,
)

RPC_PREFIX = f"{PREFIX}RPC_"

MEBIBYTE = 2**20

Bytes = Annotated[int, Field(ge=1024, le=2**31 - 1)]
Port = Annotated[int, Field(ge=0, le=65535)]


class RpcSettings(EnvironmentSettings):
    """Settings of gRPC servers and channels."""

    model_config = SettingsConfigDict(env_prefix=RPC_PREFIX)

    host: Host = "127.0.0.1"
    """Address that a server listens on; `0.0.0.0` or `::` for all of the machine's addresses."""
    port: Port = 0
    """Port that a server listens on; 0 picks a free one."""
    advertise: str = ""
    """HOST or HOST:PORT at which the other services call this server, if that is not where it listens. Unset: the
    address that it listens on, or the name of this machine if it listens on all addresses."""
    health_port: Port | None = None
    """Second port that answers only health checks, without TLS, because a kubelet cannot use TLS; 0 picks a free one.
    If unset, only the server's own port answers health checks."""
    plaintext: bool = False
    """Allow plaintext to and from other machines; without it and without a certificate such a server or channel fails
    to start."""
    tls_certificate: Path | None = None
    """PEM file with a server's certificate and its intermediate certificates; the server then accepts TLS only."""
    tls_key: Path | None = None
    """PEM file with the private key of the certificate, without a password."""
    tls_client_ca: Path | None = None
    """PEM file with the authorities of client certificates (mTLS). If unset, a server accepts every client."""
    system_names: str = ""
    """Names (SAN) of the certificates of the system's own services, separated by commas. With mTLS, a stage serves only
    these. Unset: the names of its own certificate."""
    tls: bool = False
    """Call servers with TLS; implied by `tls_ca`, `tls_client_certificate` and `tls_client_key`."""
    tls_ca: Path | None = None
    """PEM file with the authorities of server certificates; if unset, those that gRPC ships."""
    tls_client_certificate: Path | None = None
    """PEM file with the certificate that a channel presents to servers (mTLS)."""
    tls_client_key: Path | None = None
    """PEM file with the private key of that certificate, without a password."""
    tls_server_name: str | None = None
    """Name that a server's certificate must have, if it differs from the host that is called."""
    reflection: bool = False
    """Answer reflection requests, with which clients such as grpcurl learn what a server offers."""
    receive_bytes: Bytes = 16 * MEBIBYTE
    """Maximum size of a received message, in bytes."""
    send_bytes: Bytes = 16 * MEBIBYTE
    """Maximum size of a sent message, in bytes. Most clients accept at most 4 MiB."""
    keepalive_seconds: Annotated[float, Field(ge=60, le=7200)] | None = None
    """Interval in seconds between keepalive pings on an idle connection. If unset, a server pings every two hours, a
    channel never."""
    connections: Annotated[int, Field(ge=1, le=10**6)] = 2000
    """Maximum number of connections of a server; further ones are closed. At most half of the files that the process
    may open."""
    max_calls: Annotated[int, Field(ge=1)] = 1000
    """Maximum number of concurrent calls of a server, without WatchJob; further calls are refused with
    RESOURCE_EXHAUSTED. A tenth is kept for GetJob, CancelJob and DeleteJob."""
    max_streams: Annotated[int, Field(ge=1)] = 1000
    """Maximum number of concurrent calls of WatchJob; further ones are refused."""
    peer_calls: Annotated[int, Field(ge=1)] = 250
    """Maximum number of concurrent calls of one client, without WatchJob."""
    peer_streams: Annotated[int, Field(ge=1)] = 100
    """Maximum number of concurrent calls of WatchJob of one client."""
    trusted_peers: str = "127.0.0.0/8,::1"
    """Addresses and networks, separated by commas, of web services: the client that they name counts as the caller, and
    calls for which they name none have no limits for one client."""
    receiving: Annotated[int, Field(ge=1)] = 128
    """Maximum number of requests that are received at the same time; further ones wait up to 10 s."""
    request_bytes: Annotated[int, Field(ge=2**20)] = 256 * MEBIBYTE
    """Maximum size of all requests in progress together, in bytes; one client may use half of it."""
    default_deadline: Seconds = 600.0
    """Time in seconds after which a server ends a call without a deadline."""
    max_deadline: Seconds = 3600.0
    """Time in seconds after which a server ends any call."""
    grace: SecondsOrNone = 25.0
    """Time in seconds that a stopping server gives its calls to finish; the rest are cancelled."""
    drain_delay: SecondsOrNone = 0.0
    """Time in seconds for which a stopping server still accepts calls while its health says NOT_SERVING, so that load
    balancers notice."""
    attempts: Annotated[int, Field(ge=1, le=5)] = 4
    """Maximum number of attempts at a call that fails with UNAVAILABLE, including the first."""

    @field_validator("advertise")
    @classmethod
    def _check_advertise(cls, text: str) -> str:
        try:
            parts = urlsplit(f"//{text}")
            parts.port  # noqa: B018 - Raises for one that is no number, or too large.
        except ValueError:
            parts = None
        if text and (parts is None or parts.netloc != text or not parts.hostname or "@" in text):
            raise ValueError(f"{text!r} must be HOST or HOST:PORT; an IPv6 address is in brackets")
        return text

    def advertised(self, port: int) -> str:
        """Returns HOST:PORT at which others call a server.

        Args:
            port: the port that it listens on.
        """
        if self.advertise:
            parts = urlsplit(f"//{self.advertise}")
            return address_of(parts.hostname or "", parts.port or port)
        everywhere = self.host in ("0.0.0.0", "::")
        return address_of(socket.gethostname() if everywhere else self.host, port)

    @field_validator("trusted_peers")
    @classmethod
    def _check_trusted_peers(cls, text: str) -> str:
        return check_networks(text)


def rpc_settings() -> RpcSettings:
    """Reads the settings from the environment.

    Raises:
        InvalidInputError: a setting is invalid; names the variable.
    """
    return read_settings(RpcSettings)


def variable(field: str) -> str:
    """Returns the environment variable of a setting."""
    return f"{RPC_PREFIX}{field}".upper()


def message_options(settings: RpcSettings) -> list[tuple[str, Any]]:
    """Returns gRPC's options for message sizes and keepalive, which servers and channels share."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.receive_bytes),
        ("grpc.max_send_message_length", settings.send_bytes),
    ]
    if settings.keepalive_seconds is not None:
        options.append(("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)))
    return options
