"""The fields of every task, and the events that follow from one."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from smalti.messages.envelope import Envelope, ShortText
from smalti.messages.events import Failed, FailureReason, PromptReading, ShardReport, StageDone
from smalti.messages.queues import queue_name
from smalti.messages.routing import ROUTES_SINCE, Routes
from smalti.storage import JobKeys, ObjectRef, content_key, digest


class RoutedTask(Envelope):
    """The fields of the tasks of all stages, for a job or for a shard of a batch."""

    model: ShortText
    """Name of the model."""
    revision: ShortText
    """Revision of the model; a worker with another one holds the task back, unless `routes` has its key."""
    tenant: ShortText | None = None
    """Name of the tenant that the job belongs to; None if nothing says it. Since version 3."""
    routes: Routes = Field(default={}, exclude_if=lambda routes: not routes)
    """Keys of the queues that the work of the job goes to, by stage; the work of a stage without a key goes to the
    queues of all its workers. Since version 3."""
    binding: Annotated[int, Field(ge=0, le=1000, exclude_if=lambda binding: not binding)] = 0
    """How often the job was bound to another revision after work had been sent. What the stages wrote before does not
    count for it. Since version 3."""

    @model_validator(mode="after")
    def _check_routed(self) -> Self:
        if self.version < ROUTES_SINCE:
            for name in ("tenant", "routes", "binding"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs version {ROUTES_SINCE}")
        return self

    @property
    def keys(self) -> JobKeys:
        """The keys of the job's objects."""
        return JobKeys(self.job, self.binding)

    @property
    def queue(self) -> str:
        """The queue that the message goes to."""
        return queue_name(self.stage_queue, self.priority, self.routes.get(self.stage_queue))

    def output_key(self, name: str, content: bytes) -> str:
        """Returns the key of an object that the stage writes.

        Args:
            name: its name in `JobKeys`.
            content: its content, from which the key follows since version 2.
        """
        return content_key(name, digest(content)) if self.version > 1 else name

    def done(
        self,
        *objects: ObjectRef,
        seconds: float = 0.0,
        skipped: bool = False,
        reading: PromptReading | None = None,
        shard: ShardReport | None = None,
    ) -> StageDone:
        """Returns the event that says that the stage has finished.

        Args:
            objects: what the stage has written; must be durable.
            seconds: time spent in the engine.
            skipped: whether an earlier attempt had already written the objects.
            reading: how the model reads the prompt; given by the encoder.
            shard: what has become of a shard; given by its last stage.
        """
        return StageDone(
            **self._event_fields(),
            objects=objects,
            seconds=seconds,
            skipped=skipped,
            reading=reading,
            shard=shard,
        )

    def failed(self, reason: FailureReason, detail: str, *, permanent: bool = True) -> Failed:
        """Returns the event that says that the stage has failed.

        Args:
            reason: why.
            detail: one line for the user.
            permanent: whether another attempt would fail as well.
        """
        return Failed(**self._event_fields(), reason=reason, detail=detail[:500], permanent=permanent)

    def from_the_start(self) -> "RoutedTask | None":
        """Returns the task that makes the same work again from its beginning; None if only the gateway can.

        A stage sends it when an object is missing or damaged. Delete a damaged object first: otherwise the producing
        stage would find it and skip the work.
        """
        return None

    def _unknown(self, known: frozenset[str]) -> dict[str, Any]:
        """Returns the fields that a later release has added; `known` are those of all tasks that may follow."""
        return {name: value for name, value in (self.model_extra or {}).items() if name not in known}

    @property
    def _bound(self) -> tuple[str, ...]:
        """What tells its work from that of earlier bindings."""
        return (f"binding {self.binding}",) if self.binding else ()

    def _check_names(self, refs: tuple[ObjectRef, ...], names: tuple[str, ...]) -> None:
        """Raises `ValueError` unless the references are to objects with these names.

        Since version 2, their keys must follow from their content, too.
        """
        keys = tuple(
            content_key(name, ref.sha256) if self.version > 1 else name
            for name, ref in zip(names, refs, strict=False)
        )
        if len(refs) != len(names) or tuple(ref.key for ref in refs) != keys:
            raise ValueError(f"the references must be to {', '.join(names)}, with their contents in the keys")

    def _event_fields(self) -> dict[str, Any]:
        chunk = getattr(self, "chunk", None)
        return {**Envelope._carried(self), "stage": self.stage_queue, "chunk": chunk}
