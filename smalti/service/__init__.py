"""The shell of a service: settings, start, health, drain, exit codes, and how a stage handles a message."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smalti.service.engine import Engine
    from smalti.service.process import BackgroundTask, Build, Process, Service, run
    from smalti.service.settings import ServiceSettings, service_settings
    from smalti.service.telemetry import Telemetry

__all__ = [
    "BackgroundTask",
    "Build",
    "Engine",
    "Process",
    "Service",
    "ServiceSettings",
    "Telemetry",
    "cancellation",
    "checks",
    "compute",
    "engine_service",
    "failpoints",
    "model",
    "objects",
    "prompts",
    "run",
    "service_settings",
    "serving",
    "shards",
    "stage",
]

_LAZY = {
    "BackgroundTask": "process",
    "Build": "process",
    "Engine": "engine",
    "Process": "process",
    "Service": "process",
    "ServiceSettings": "settings",
    "Telemetry": "telemetry",
    "run": "process",
    "service_settings": "settings",
}

# Hidden from type checkers, for which any attribute would exist otherwise.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Imports a name when it is first used: commands that need `failpoints` alone do not wait for Celery."""
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
