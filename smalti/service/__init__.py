"""What every service's process shares: settings, start, health, drain, exit codes."""

from smalti.service.process import Build, Companion, Engine, Process, Service, run
from smalti.service.settings import ServiceSettings, service_settings

__all__ = ["Build", "Companion", "Engine", "Process", "Service", "ServiceSettings", "run", "service_settings"]
