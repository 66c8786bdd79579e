"""The thread in which a worker returns messages that were held back, from Valkey's sorted sets to their queues.

It also keeps what takes long: by Valkey's record of when a worker got a message, others take it back after a while.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

from smalti.queue.application import celery_application
from smalti.queue.broker.queues import UNUSED_SECONDS, is_keyed
from smalti.queue.broker.transport import BROKER_ERRORS, describe
from smalti.queue.held.holding import RETURN_SCRIPT, held_set
from smalti.queue.settings import BrokerSettings

logger = logging.getLogger(__name__)

INTERVAL_SECONDS: Final = 1.0
"""Interval between two looks, at most twice the first delay; a message is held back for that much longer at most."""
KEEPS: Final = 4
"""How often a message that takes long is kept within the visibility timeout."""
MAX_RETURNED: Final = 100
"""Messages of a queue that are returned at a time."""


class ReturningThread:
    """Returns held messages once their delay is over; several workers may do so for the same queue."""

    def __init__(
        self, settings: BrokerSettings, queues: Iterable[str], kept: Callable[[], Iterable[str]]
    ) -> None:
        """Connects to nothing until `start`.

        Args:
            settings: the broker, which is Valkey or Redis.
            queues: the queues that messages are returned to.
            kept: returns the delivery tags of messages that this worker works on, however long that takes.
        """
        self._kept = kept
        self._keep_seconds = settings.visibility_timeout / KEEPS
        self._kept_at = time.monotonic()
        self._application = celery_application(settings)
        self._interval = min(INTERVAL_SECONDS, 2 * settings.retry_first)
        names = tuple(queues)
        keys = [key for name in names for key in (held_set(name), name)]
        unused = [UNUSED_SECONDS if is_keyed(name) else 0 for name in names]
        self._arguments = len(keys), *keys, MAX_RETURNED, *unused
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="returning", daemon=True)

    def start(self) -> None:
        """Starts the thread without waiting for the broker."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after what it is doing."""
        self._stopping.set()

    def _run(self) -> None:
        failing = False
        while not self._stopping.is_set():
            try:
                self._return_while_connected()
            except BROKER_ERRORS as error:
                if not failing:
                    logger.warning("messages that were held back are not returned: %s", describe(error))
                failing = True
                self._stopping.wait(self._interval)
            else:
                failing = False

    def _keep(self, channel: Any) -> None:
        """Tells the broker that this worker still has its long messages, a few times in the time that it allows."""
        if time.monotonic() - self._kept_at < self._keep_seconds:
            return
        self._kept_at = time.monotonic()
        now = time.time()
        if tags := dict.fromkeys(self._kept(), now):
            # Only those that are there: one may have been acknowledged meanwhile.
            channel.client.zadd(channel.unacked_index_key, tags, xx=True)

    def _return_while_connected(self) -> None:
        connection = self._application.connection_for_write(heartbeat=0)
        try:
            connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
            channel: Any = connection.default_channel
            while not self._stopping.is_set():
                channel.client.eval(RETURN_SCRIPT, *self._arguments)
                self._keep(channel)
                self._stopping.wait(self._interval)
        finally:
            with suppress(*BROKER_ERRORS):
                connection.release()
