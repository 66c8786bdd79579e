"""What every service's process shares: settings, start, health, drain, exit codes."""

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
    "run",
    "service_settings",
]
