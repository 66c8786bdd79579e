"""A batch before it is accepted, and what its row holds as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError

from smalti.batches import BatchDefaults, InputFormat, PictureFormat, ShardRange
from smalti.messages import ShortText, Trace
from smalti.services.gateway.database.tables import DEFAULT_TENANT, Batch, Shard
from smalti.services.gateway.jobs.spec import JobWebhook
from smalti.services.gateway.models import ModelCard
from smalti.validation import Strict, first_problem


class BatchSource(Strict):
    """The input of a batch."""

    object_key: str
    """The object with the rows."""
    sha256: str | None = None
    """SHA-256 of the object; None if it is not known before it is read."""
    name: str
    """The name of the file, without folders."""
    file_id: str = ""
    """The file that the request names; empty if it names an object."""
    format: InputFormat
    columns: Mapping[str, str] = {}
    ignore_columns: bool = False
    skip_invalid: bool = False


class BatchParameters(Strict):
    """What decides what a batch draws."""

    input: BatchSource
    defaults: BatchDefaults
    picture_format: PictureFormat = PictureFormat.PNG
    shard_prompts: int
    refiner: ShortText | None = None
    """Revision of the refiner; None if no refiner is used."""

    @property
    def has_second_pass(self) -> bool:
        """Whether the chosen pictures are refined or enlarged."""
        return self.defaults.second_pass is not None


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """A batch to accept; every value is checked."""

    card: ModelCard
    """The revision that the batch is bound to."""
    pinned: bool = False
    """Whether the request names the revision, so that no shard is ever bound to another."""
    parameters: BatchParameters
    time_limit: float
    """Time until the batch expires, in seconds."""
    retention: float | None
    """Time for which the batch is kept after its end, in seconds; None takes the default, or less for some tenants."""
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    rank: int = 0
    slots: int | None = None
    validate_only: bool = False
    webhook: JobWebhook | None = None
    tenant: str = DEFAULT_TENANT
    request_id: str | None = None
    request_hash: str | None = None
    trace: Trace | None = None


class UnreadableBatchError(Exception):
    """This version cannot read the row of a batch."""


def parameters_of(batch: Batch) -> BatchParameters:
    """Returns the parameters of a batch; raises `UnreadableBatchError` if another version has stored them."""
    try:
        return BatchParameters.model_validate(batch.parameters, extra="ignore")
    except ValidationError as error:
        problem = first_problem(error, show_value=False)
        raise UnreadableBatchError(f"batch {batch.id} cannot be read: {problem}") from error


def range_of(shard: Shard) -> ShardRange:
    """Returns which prompts a shard has."""
    return ShardRange(number=shard.number, start=shard.start, count=shard.count, part=shard.part)
