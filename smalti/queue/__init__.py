"""The queues between the services: sending a message, and handling those that come."""

from smalti.queue.application import celery_application
from smalti.queue.consumer import Consumption, consume
from smalti.queue.delivery import Delivery, Ending, Handled, Handler, Observer, Outcome
from smalti.queue.errors import (
    BrokerUnavailableError,
    GiveBackError,
    HandlerError,
    PermanentError,
    RetryError,
)
from smalti.queue.publisher import Publisher
from smalti.queue.settings import BrokerSettings, broker_settings

__all__ = [
    "BrokerSettings",
    "BrokerUnavailableError",
    "Consumption",
    "Delivery",
    "Ending",
    "GiveBackError",
    "Handled",
    "Handler",
    "HandlerError",
    "Observer",
    "Outcome",
    "PermanentError",
    "Publisher",
    "RetryError",
    "broker_settings",
    "celery_application",
    "consume",
]
