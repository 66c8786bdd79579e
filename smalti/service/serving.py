"""What a worker serves, and how it tells the gateways of it while it is there."""

import base64
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from smalti import __version__
from smalti.errors import BrokerUnavailableError
from smalti.messages import MAX_CARD_LENGTH, VERSION, Hello, RouteKey, Stage
from smalti.queue import BrokerPublisher
from smalti.registry.routes import route_keys
from smalti.registry.spec import ModelSpec
from smalti.service.model import model_card, model_message

log = logging.getLogger(__name__)

GOODBYE_SECONDS: Final = 2.0
"""Time in which the broker must take the last hello of a worker that stops."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What a worker serves: its key, and the model that it has loaded."""

    stage: Stage
    key: RouteKey
    """Key of the files that it works with; it serves every model with the same."""
    model: str
    revision: str
    device: str
    """Kind of the device that it computes on."""
    card: str | None = None
    """The serialized description of the model in base64; encoders have it."""
    parts: Mapping[Stage, RouteKey] = field(default_factory=dict)
    """Keys of all stages of the model; encoders have them."""

    @classmethod
    def of(cls, stage: Stage, spec: ModelSpec, device: str) -> Self:
        """Returns what a worker serves that has loaded a model; raises `ModelError` if a file of it is invalid."""
        keys = route_keys(spec.folder)
        is_encoder = stage is Stage.ENCODE
        return cls(
            stage=stage,
            key=keys[stage],
            model=spec.folder.name,
            revision=spec.folder.revision,
            device=device,
            card=_card(spec) if is_encoder else None,
            parts=keys if is_encoder else {},
        )


def _card(spec: ModelSpec) -> str:
    """Returns the description of a model for a hello, without the vocabulary if that is too large."""
    card = base64.b64encode(model_card(spec).SerializeToString()).decode()
    if len(card) <= MAX_CARD_LENGTH:
        return card
    log.warning("the words of %s are too many for a message; gateways do not learn them", spec.folder.name)
    return base64.b64encode(model_message(spec).SerializeToString()).decode()


class HelloThread:
    """Says hello to the gateways at an interval while the worker serves, and once more when it stops."""

    def __init__(
        self,
        publisher: BrokerPublisher,
        serving: Serving,
        *,
        address: str,
        slots: int,
        concurrency: int,
        shards: int,
        interval: float,
        serves: Callable[[], bool],
    ) -> None:
        """Says nothing until `start`.

        Args:
            publisher: sends the messages.
            serving: what the worker serves.
            address: HOST:PORT at which it is called over gRPC.
            slots: computations of its engine at the same time.
            concurrency: messages that it handles at the same time.
            shards: shards that it handles at the same time, beside these messages.
            interval: seconds between two hellos.
            serves: whether calls and messages can succeed now; it is silent while they cannot.
        """
        self._publisher = publisher
        self._interval = interval
        self._serves = serves
        self._hello = Hello(
            worker=uuid.uuid4().hex,
            stage=serving.stage,
            key=serving.key,
            model=serving.model,
            revision=serving.revision,
            slots=slots,
            concurrency=concurrency,
            shards=shards,
            device=serving.device[:200],
            code=__version__,
            reads=VERSION,
            address=address,
            interval=interval,
            sent=time.time(),
            card=serving.card,
            parts=dict(serving.parts),
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hello", daemon=True)

    def start(self) -> None:
        """Says hello for the first time soon."""
        self._thread.start()

    def stop(self) -> None:
        """Says that the worker is leaving, if the broker takes it at once, and nothing after that."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join(GOODBYE_SECONDS)
            self._say(leaving=True, timeout=GOODBYE_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._serves():
                self._say(leaving=False, timeout=self._interval)
            self._stopping.wait(self._interval)

    def _say(self, *, leaving: bool, timeout: float) -> None:
        try:
            hello = self._hello.model_copy(update={"sent": time.time(), "leaving": leaving})
            self._publisher.publish(hello, timeout=timeout)
        except BrokerUnavailableError as error:
            log.info("a hello is lost: %s", error)
        except Exception:
            # Without hellos the worker would count as gone.
            log.exception("a hello is lost")
