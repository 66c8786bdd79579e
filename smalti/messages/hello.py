"""What a worker says of itself to the gateways, again and again while it is there."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from smalti.messages.envelope import Count, Extensible, ShortText, check_size
from smalti.messages.queues import HELLO_QUEUE, RouteKey, Stage
from smalti.messages.routing import Routes

MAX_CARD_LENGTH = 48 * 1024
"""Characters of the card of a model."""
MAX_HELLO_SECONDS = 3600.0
"""Seconds between two hellos."""


class Hello(Extensible):
    """A worker is there, and serves a model. It is of no job; losing one does no harm. Since version 3."""

    kind: Literal["hello"] = "hello"
    version: Literal[3] = 3
    worker: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    """Identifies the process: the hexadecimal digits of a random UUID."""
    stage: Stage
    key: RouteKey
    """Key of the queues that it consumes."""
    model: ShortText
    """Name of the model that it has loaded. It also serves others for which `key` is the same."""
    revision: ShortText
    """Revision of that model."""
    slots: Annotated[int, Field(ge=1, le=2**20)]
    """Computations at the same time, as `EngineService` says; candidates for a generator."""
    concurrency: Annotated[int, Field(ge=1, le=2**20)]
    """Messages that it handles at the same time."""
    shards: Annotated[int, Field(ge=0, le=2**20, exclude_if=lambda shards: not shards)] = 0
    """Shards of batches that it handles at the same time, beside these messages; 0 for a worker that knows none."""
    device: ShortText
    """Kind of its device."""
    code: ShortText
    """Version of Smalti that it runs."""
    reads: Count
    """Newest version of messages that it reads."""
    address: ShortText
    """HOST:PORT at which others call it over gRPC; empty if it is not known."""
    interval: Annotated[float, Field(gt=0, le=MAX_HELLO_SECONDS)]
    """Seconds until its next hello."""
    sent: Annotated[float, Field(ge=0, lt=2**40)]
    """Unix time of its sending, by the worker's clock. The microseconds fit into a database."""
    leaving: bool = False
    """Whether it stops, and takes nothing new."""
    card: Annotated[str, StringConstraints(max_length=MAX_CARD_LENGTH)] | None = None
    """The description of the model, a serialized `smalti.v1.Model` in base64, with the vocabulary and without limits.
    Encoders have it."""
    parts: Routes = Field(default={}, exclude_if=lambda parts: not parts)
    """Keys of all stages of the model; empty where `card` is missing."""

    @property
    def stage_queue(self) -> Stage:
        """The stage that receives it."""
        return Stage.EVENTS

    @property
    def queue(self) -> str:
        """The queue of hellos. That of events would be read by gateways of 0.2.0, too."""
        return HELLO_QUEUE

    def to_json(self) -> str:
        """Returns the message as JSON; raises `OversizedMessageError` if it is too large."""
        text = self.model_dump_json(exclude_none=True)
        check_size(text)
        return text
