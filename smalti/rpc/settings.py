"""The settings of gRPC servers and channels: the variable of a field is its name after `SMALTI_RPC_`."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from smalti.settings import PREFIX, EnvironmentSettings, Seconds, read_settings

RPC_PREFIX = f"{PREFIX}RPC_"

MEBIBYTE = 2**20

Bytes = Annotated[int, Field(ge=1024, le=2**31 - 1)]
Port = Annotated[int, Field(ge=0, le=65535)]
SecondsOrNone = Annotated[float, Field(ge=0, le=7 * 24 * 3600, allow_inf_nan=False)]


class RpcSettings(EnvironmentSettings):
    """The settings; see `EnvironmentSettings`."""

    model_config = SettingsConfigDict(env_prefix=RPC_PREFIX)

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """The address that a server listens at; `0.0.0.0` or `[::]` for all of the machine."""
    port: Port = 0
    """The port that a server listens at; 0 is a free one."""
    health_port: Port | None = None
    """A second port that answers health checks alone, without TLS, for a kubelet, which speaks no TLS; 0 is a free one.
    Unset, there is none; health is then answered at the server's own port only."""
    plaintext: bool = False
    """Serve and call without TLS beyond the machine itself. Without it that is refused where no certificate is set."""
    tls_certificate: Path | None = None
    """A server's certificate, and those between it and its authority, as a PEM file; it then speaks TLS only."""
    tls_key: Path | None = None
    """The private key of the certificate, as a PEM file without a password."""
    tls_client_ca: Path | None = None
    """The authorities, as a PEM file, one of which must have signed a client's certificate (mTLS). Unset, a server
    takes every client."""
    tls: bool = False
    """Call servers with TLS; implied by the settings of a channel's TLS that follow."""
    tls_ca: Path | None = None
    """The authorities, as a PEM file, one of which must have signed a server's certificate; unset, those that gRPC
    comes with."""
    tls_client_certificate: Path | None = None
    """The certificate that a channel shows to servers (mTLS), as a PEM file."""
    tls_client_key: Path | None = None
    """The private key of that certificate, as a PEM file without a password."""
    tls_server_name: str | None = None
    """The name that a server's certificate must be for, where it is not the host that is called."""
    reflection: bool = False
    """Let clients ask a server which services it has and how their messages are made (grpcurl does)."""
    receive_bytes: Bytes = 16 * MEBIBYTE
    """The largest message, in bytes, that a server or a channel takes."""
    send_bytes: Bytes = 16 * MEBIBYTE
    """The largest message, in bytes, that a server or a channel sends. Most clients take no more than 4 MiB."""
    keepalive_seconds: Annotated[float, Field(ge=60, le=7200)] | None = None
    """How often a server or a channel asks a silent other end whether it is still there; at least 60. Unset, a server
    asks every two hours, a channel never."""
    max_calls: Annotated[int, Field(ge=1)] = 1000
    """Calls that a server answers at the same time; more are refused with RESOURCE_EXHAUSTED."""
    default_deadline: Seconds = 600.0
    """The seconds after which a server ends a call that has no deadline of its own."""
    max_deadline: Seconds = 3600.0
    """The seconds after which a server ends any call."""
    grace: SecondsOrNone = 25.0
    """The seconds in which a server that stops finishes the calls it has begun; what is left then is broken off."""
    drain_delay: SecondsOrNone = 0.0
    """The seconds between telling that it stops (health) and taking no more calls, for load balancers to notice."""
    attempts: Annotated[int, Field(ge=1, le=5)] = 4
    """How often a channel tries a call that is answered with UNAVAILABLE, the first time included."""


def rpc_settings() -> RpcSettings:
    """Reads the settings from the environment as it is now.

    Raises:
        InvalidInputError: names the variable whose value cannot be used.
    """
    return read_settings(RpcSettings)


def variable(field: str) -> str:
    """Returns the name of a setting's variable."""
    return f"{RPC_PREFIX}{field}".upper()


def message_options(settings: RpcSettings) -> list[tuple[str, Any]]:
    """Returns gRPC's options for the size of messages and for keepalive, the same on both ends."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.receive_bytes),
        ("grpc.max_send_message_length", settings.send_bytes),
    ]
    if settings.keepalive_seconds is not None:
        options.append(("grpc.keepalive_time_ms", round(settings.keepalive_seconds * 1000)))
    return options
