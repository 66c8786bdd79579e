"""What a system of the fault matrix consists of, and its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

STAGES = ("encoder", "generator", "decoder", "ranker")
STAGE_NAMES = {"encoder": "encode", "generator": "generate", "decoder": "decode", "ranker": "rank"}
"""The name of each service's work in the queues."""

FIRST, NEXT = "first", "next"
"""Two revisions of one model, which share the VQGAN and CLIP."""
DECODER = "SMALTI_GATEWAY_DECODER"
"""A setting of rows with initial images; the system gives it the decoder's address."""


# Short times, so that lost work is detected soon, but longer than the tiny model takes.
SETTINGS = {
    "SMALTI_LOG_FORMAT": "json",
    "SMALTI_METRICS_PORT": "0",
    "SMALTI_BROKER_TIMEOUT": "3",
    "SMALTI_BROKER_VISIBILITY_TIMEOUT": "6",
    "SMALTI_BROKER_RETRY_FIRST": "0.1",
    "SMALTI_BROKER_RETRY_MAX": "2",
    "SMALTI_BROKER_DRAIN": "10",
    "SMALTI_STORE_TIMEOUT": "3",
    "SMALTI_SERVICE_STALL": "20",
    "SMALTI_SERVICE_GRACE": "20",
    "SMALTI_RPC_GRACE": "5",
    "SMALTI_GATEWAY_LEASE": "12",
    "SMALTI_GATEWAY_RETRY": "1",
    "SMALTI_GATEWAY_ATTEMPTS": "8",
    "SMALTI_GATEWAY_SWEEP": "0.2",
    "SMALTI_GATEWAY_DATABASE_TIMEOUT": "3",
}


@dataclass(frozen=True)
class Layout:
    """The parts of a system."""

    broker: str = "valkey"
    database: str = "sqlite"
    gateways: int = 1
    """Number of gateways that clients use in turn: `gateway`, `gateway-2` and so on."""
    services: tuple[str, ...] = STAGES
    """Names of services, numbered if there are several: `decoder-2`."""
    held: tuple[str, ...] = ()
    """Services that are not started at first; see `System.release`."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Modules that are run instead of the services with these names."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Which model services load, by their names; those that are not named load `FIRST`."""
    releases: Mapping[str, str] = field(default_factory=dict)
    """Released versions that run instead of the present code, by the names of services."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings of all processes, which override `SETTINGS`."""
    failpoints: tuple[str, ...] = ()
