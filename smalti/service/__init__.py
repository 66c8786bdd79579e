"""What every service's process shares: settings, start, health, drain, exit codes."""

from smalti.service.process import BackgroundTask, Build, Engine, Process, Service, run
from smalti.service.settings import ServiceSettings, service_settings

__all__ = [
    "BackgroundTask",
    "Build",
    "Engine",
    "Process",
    "Service",
    "ServiceSettings",
    "run",
    "service_settings",
]
