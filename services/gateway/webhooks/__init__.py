"""Webhooks: notices of what has ended, signed, and sent again until they are taken or a day has passed."""

from smalti.services.gateway.webhooks.addresses import check_url, host_of
from smalti.services.gateway.webhooks.deliveries import Deliveries
from smalti.services.gateway.webhooks.repository import WebhookRepository
from smalti.services.gateway.webhooks.settings import WEBHOOK_PREFIX, WebhookSettings, webhook_settings

__all__ = [
    "WEBHOOK_PREFIX",
    "Deliveries",
    "WebhookRepository",
    "WebhookSettings",
    "check_url",
    "host_of",
    "webhook_settings",
]
