"""The shell of a service: settings, start, health, drain, exit codes, and how a stage handles a message."""

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
