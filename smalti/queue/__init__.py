"""The queues between the services: sending a message, and handling those that come."""

from smalti.queue.application import celery_application
from smalti.queue.consumer import Consumer, consume
from smalti.queue.delivery import Delivery, HandledDelivery, Handler, Observer, Outcome
from smalti.queue.errors import (
    BrokerUnavailableError,
    GiveBackError,
    HandlerError,
    PermanentError,
    RetryError,
)
from smalti.queue.publisher import BrokerPublisher, Publisher
from smalti.queue.settings import BrokerSettings, broker_settings

__all__ = [
    "BrokerPublisher",
    "BrokerSettings",
    "BrokerUnavailableError",
    "Consumer",
    "Delivery",
    "GiveBackError",
    "HandledDelivery",
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
