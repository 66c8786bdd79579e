"""A dead letter, and which ones are meant."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from kombu import serialization

from smalti.errors import ExpiredMessageError, MalformedMessageError, SmaltiError
from smalti.messages import QUEUE_PREFIX, Message, Stage, dead_queue_name, parse
from smalti.queue.broker.queues import stage_of, stage_queues
from smalti.queue.broker.transport import RawMessage
from smalti.queue.dead.headers import BROKER, DIED, KIND, OLD_NAME, ORIGIN, REASON
from smalti.queue.dead.instructions import MAX_BODY_BYTES
from smalti.queue.signing import SEAL, SIGNED_TYPE, Seal
from smalti.storage import digest

ID_LENGTH: Final = 12
_X_DEATH: Final = "x-death"


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message that was given up, as it is in a dead-letter queue."""

    queue: str
    """The queue that it is in."""
    raw: RawMessage
    accept: tuple[str, ...]
    """The content types that this process decodes: those of signed messages, or of unsigned ones."""

    @cached_property
    def id(self) -> str:
        """A short name, the same at every look. Copies of a message have the same."""
        headers = {name: value for name, value in self.raw.headers.items() if not name.startswith("x-")}
        content = json.dumps(headers, sort_keys=True, default=str).encode() + b"\0" + self.raw.body
        return digest(content)[:ID_LENGTH]

    @property
    def stage(self) -> Stage:
        """The stage whose message it is."""
        return Stage(self.queue.removeprefix(QUEUE_PREFIX).partition(".")[0])

    @property
    def is_old(self) -> bool:
        """Whether the queue has a name of version 0.1."""
        return not self.queue.startswith(QUEUE_PREFIX)

    @property
    def why(self) -> str:
        """The reason in words."""
        if REASON in self.raw.headers:
            return str(self.raw.headers[REASON])
        return f"RabbitMQ has moved it: {self._death.get('reason', '')}" if self._death else ""

    @property
    def kind(self) -> str:
        """The reason for programs; empty if nothing says it."""
        if KIND in self.raw.headers:
            return str(self.raw.headers[KIND])
        if self._death and REASON not in self.raw.headers:
            return BROKER
        return "" if self.queue.endswith(".dead") else OLD_NAME

    @property
    def died(self) -> float | None:
        """The Unix time at which it was given up; None if nothing says it."""
        found = self.raw.headers.get(DIED)
        if isinstance(found, int | float):
            return float(found)
        moved = self._death.get("time")
        return moved.timestamp() if moved is not None and hasattr(moved, "timestamp") else None

    @property
    def origin(self) -> str:
        """The queue that it is sent to again."""
        named = str(self.raw.headers.get(ORIGIN) or self._death.get("queue", ""))
        if not named and self.message is not None:
            named = self.message.queue
        if self.is_old and not self.queue.endswith(".dead"):
            named = f"{QUEUE_PREFIX}{self.queue}"
        if named and not named.startswith(QUEUE_PREFIX):
            named = f"{QUEUE_PREFIX}{named}"
        return named if stage_of(named) is self.stage else stage_queues(self.stage)[0]

    @property
    def signed(self) -> bool:
        """Whether it has a signature, of whomever."""
        return self.raw.content_type == SIGNED_TYPE

    @cached_property
    def text(self) -> str | None:
        """The JSON of the message; None if it is none, or if its signature is not trusted here."""
        task = self._task
        return task[0][0] if task and len(task[0]) == 1 and isinstance(task[0][0], str) else None

    @cached_property
    def message(self) -> Message | None:
        """The message; None if it cannot be read."""
        if self.text is None:
            return None
        try:
            return parse(self.text)
        except ExpiredMessageError as error:
            return error.message
        except SmaltiError:
            return None

    @property
    def job(self) -> str:
        """The job; empty if the message cannot be read."""
        return self.message.job if self.message else ""

    @property
    def expired(self) -> bool:
        """Whether its time is over: sent again, it is only reported to have expired."""
        expires = getattr(self.message, "expires", None)
        return self.stage is not Stage.EVENTS and expires is not None and expires < time.time()

    def check_replay(self) -> None:
        """Raises `MalformedMessageError` if a worker would refuse it: for its signature, or because it has none."""
        if SIGNED_TYPE not in self.accept:
            return
        if not self.signed:
            raise MalformedMessageError("it is not signed, and the services accept only signed messages")
        task = self._task
        if task is None:
            raise MalformedMessageError("its signature is not trusted")
        try:
            seal = Seal.model_validate(task[1].get(SEAL))
        except ValueError:
            raise MalformedMessageError("its signature covers no queue") from None
        if not seal.is_for(self.origin):
            raise MalformedMessageError(
                f"it was signed for the queue {seal.queue[:64]}, and not for {self.origin}"
            )

    @property
    def _death(self) -> Mapping[str, Any]:
        """What RabbitMQ says of a message that it has moved."""
        found = self.raw.headers.get(_X_DEATH)
        return found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else {}

    @cached_property
    def _task(self) -> tuple[list[Any], dict[str, Any]] | None:
        """The arguments of the Celery task; None if it is none."""
        if len(self.raw.body) > MAX_BODY_BYTES:
            return None
        try:
            body = serialization.loads(
                self.raw.body, self.raw.content_type, self.raw.content_encoding, accept=list(self.accept)
            )
        except Exception:
            return None
        if (
            isinstance(body, list | tuple)
            and len(body) == 3
            and isinstance(body[0], list)
            and isinstance(body[1], dict)
        ):
            return body[0], body[1]
        return None


@dataclass(frozen=True, kw_only=True)
class LetterFilter:
    """Which dead letters are meant: those that have everything that is given."""

    ids: frozenset[str] = frozenset()
    stages: frozenset[Stage] = frozenset()
    kinds: frozenset[str] = frozenset()
    job: str = ""
    older: float | None = None
    """Minimum age in seconds."""
    newer: float | None = None
    """Maximum age in seconds."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is given, so that all are meant."""
        return self == LetterFilter()

    def queues(self, *, old: bool) -> list[str]:
        """Returns the queues to look into.

        Args:
            old: those with names of version 0.1 too, with the messages that wait in them.
        """
        stages = [stage for stage in Stage if not self.stages or stage in self.stages]
        found = [dead_queue_name(stage) for stage in stages]
        if old:
            found += [dead_queue_name(stage).removeprefix(QUEUE_PREFIX) for stage in stages]
            found += [name.removeprefix(QUEUE_PREFIX) for stage in stages for name in stage_queues(stage)]
        return found

    def matches(self, letter: DeadLetter) -> bool:
        """Returns whether a letter is meant."""
        if letter.is_old and not str(letter.raw.headers.get("task", "")).startswith(QUEUE_PREFIX):
            return False  # Of another program, which has a queue of this name.
        age = None if letter.died is None else time.time() - letter.died
        return (
            (not self.ids or letter.id in self.ids)
            and (not self.kinds or letter.kind in self.kinds)
            and (not self.job or letter.job == self.job)
            and (self.older is None or (age is not None and age >= self.older))
            and (self.newer is None or (age is not None and age <= self.newer))
        )
