"""Queues between the services: publishing messages and consuming them."""

from smalti.queue.application import broker_address, celery_application, check_broker
from smalti.queue.broker.broadcast import Broadcast
from smalti.queue.broker.order import BatchTurns
from smalti.queue.consumer import Consumer, consume
from smalti.queue.dead.access import DeadLetters, HeldLetter
from smalti.queue.dead.letters import DeadLetter, LetterFilter
from smalti.queue.errors import GiveBackError, HandlerError, HoldBackError, PermanentError, RetryError
from smalti.queue.metrics import QUEUE_ENTRY, DeliveryMetrics
from smalti.queue.outcomes import (
    Delivery,
    DeliveryObserver,
    HandledDelivery,
    Handler,
    HelloHandler,
    Outcome,
)
from smalti.queue.publisher import BrokerPublisher, Publisher
from smalti.queue.settings import BrokerSettings, broker_settings
from smalti.queue.tracing import current_trace

__all__ = [
    "QUEUE_ENTRY",
    "BatchTurns",
    "Broadcast",
    "BrokerPublisher",
    "BrokerSettings",
    "Consumer",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "DeliveryMetrics",
    "DeliveryObserver",
    "GiveBackError",
    "HandledDelivery",
    "Handler",
    "HandlerError",
    "HeldLetter",
    "HelloHandler",
    "HoldBackError",
    "LetterFilter",
    "Outcome",
    "PermanentError",
    "Publisher",
    "RetryError",
    "broker_address",
    "broker_settings",
    "celery_application",
    "check_broker",
    "consume",
    "current_trace",
]
