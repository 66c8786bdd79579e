"""What is particular to RabbitMQ: dead-letter queues of its own, and publishers that it blocks."""

import threading
import time
from collections.abc import Iterable

import amqp
import pytest

from harness.queue import HARMLESS_WARNINGS, QueueHarness, clear, events, patient, settings_for, task
from harness.servers import RabbitMQServer
from harness.waiting import WAIT
from smalti.errors import BrokerUnavailableError
from smalti.messages import EncodeTask, Message, Stage
from smalti.queue import BrokerPublisher, Delivery, Outcome, celery_application

pytestmark = [
    pytest.mark.skipif(not RabbitMQServer.installed(), reason="needs RabbitMQ"),
    *(pytest.mark.filterwarnings(each) for each in HARMLESS_WARNINGS),
]


def test_queue_is_declared_together_with_its_dead_letter_queue(rabbitmq: RabbitMQServer) -> None:
    settings = settings_for(rabbitmq)
    clear(settings)
    with celery_application(patient(settings)).connection_for_write() as connection:
        connection.channel().queue_delete("smalti.refine.dead")
        publisher = BrokerPublisher(settings)
        publisher.publish_text(Stage.REFINE, "smalti.refine.batch", "{}", timeout=WAIT)
        publisher.close()
        # It would otherwise be there only once Smalti itself gives a message up.
        assert connection.channel().queue_declare("smalti.refine.dead", passive=True).message_count == 0
    clear(settings)


def test_worker_declares_dead_letter_queues_at_its_start(rabbitmq: RabbitMQServer) -> None:
    settings = settings_for(rabbitmq)
    clear(settings)
    with celery_application(patient(settings)).connection_for_write() as connection:
        connection.channel().queue_delete("smalti.refine.dead")
        with pytest.raises(amqp.NotFound):
            connection.channel().queue_declare("smalti.refine.dead", passive=True)
        queue_harness = QueueHarness(settings)
        try:
            queue_harness.work(lambda delivery: [], stage=Stage.REFINE)
            assert connection.channel().queue_declare("smalti.refine.dead", passive=True).message_count == 0
        finally:
            queue_harness.stop()


def test_blocked_publisher_holds_its_message(rabbitmq: RabbitMQServer) -> None:
    settings = settings_for(rabbitmq, timeout=1.0)
    clear(settings)
    queue_harness = QueueHarness(settings)
    go_on = threading.Event()

    def handle(delivery: Delivery) -> Iterable[Message]:
        assert isinstance(delivery.message, EncodeTask)
        go_on.wait(4 * WAIT)
        return [delivery.message.done()]

    try:
        queue_harness.publisher.publish(task("held"), timeout=WAIT)
        queue_harness.work(handle)
        with rabbitmq.alarm():
            go_on.set()
            with pytest.raises(BrokerUnavailableError):
                queue_harness.publisher.publish(task("refused"))
            time.sleep(5)  # Time for several tries.
            assert not queue_harness.outcomes
        queue_harness.wait_for(Outcome.DONE)
        assert queue_harness.outcomes[Outcome.UNCONFIRMED] == 0
        assert queue_harness.begun.count("held") == 1
        # What was on its way when a try timed out may arrive as well.
        assert "held" in {event.job for event in events(patient(settings))}
    finally:
        go_on.set()
        queue_harness.stop()
