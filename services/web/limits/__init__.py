"""Limits on what clients may take: connections, requests, bytes and time."""

from smalti.services.web.limits.clients import ClientLimits
from smalti.services.web.limits.guard import Guard
from smalti.services.web.limits.listener import LimitedListener
from smalti.services.web.limits.protocol import protocol_class

__all__ = ["ClientLimits", "Guard", "LimitedListener", "protocol_class"]
