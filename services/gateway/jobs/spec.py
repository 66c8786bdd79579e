"""A job before it is accepted: every value is checked."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field

from smalti.messages import Prompt, ShortText, Trace
from smalti.parameters import FREE, Priority, SamplingParameters, SecondPass, Seed
from smalti.services.gateway.database.tables import DEFAULT_TENANT
from smalti.services.gateway.models import ModelCard
from smalti.validation import Strict


class JobParameters(Strict):
    """The parameters of a job. Together with `Job.given`, they are sufficient to generate the same pictures again."""

    model: ShortText
    revision: ShortText
    prompt: Prompt
    n: int
    candidates: int
    first_candidate: int = 0
    seed: Seed
    sampling: SamplingParameters
    keep_rows: int = Field(default=0, ge=0)
    """Rows of tokens at the top that are kept whole of an initial image."""
    strength: float | None = None
    """Share of the initial image that each candidate draws anew; None keeps all of `Job.given`."""
    vary: bool = False
    """Whether candidates differ in what the prompt leaves open."""
    diversity: float = 0.0
    """Weight of difference from each other in the choice of pictures."""
    second_pass: SecondPass | None = None
    """What happens to the chosen pictures; None if nothing does."""
    refiner: ShortText | None = None
    """Revision of the refiner; None if no refiner is used."""
    binding: int | None = None
    """How often the job was bound to another revision after work had been sent; None if it never was."""
    since_lease: int | None = None
    """The first lease of that revision; events of earlier ones do not count. None if it is the first revision."""


class JobWebhook(Strict):
    """Who is told when a job has ended; what is None is as its tenant has it."""

    url: str | None = None
    include_prompt: bool | None = None


def rows_kept(given: Sequence[int], strength: float | None, side: int) -> int:
    """Returns how many rows at the top every candidate keeps whole; the generator begins after them."""
    if strength is not None:
        return 0
    return (given.index(FREE) if FREE in given else len(given)) // side


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A job to accept."""

    prompt: str
    seed: int
    sampling: SamplingParameters
    time_limit: float
    """Time until the job expires, in seconds."""
    retention: float | None
    """Time for which the job is kept after its end, in seconds; None takes the default, or less for some tenants."""
    card: ModelCard | None = None
    """The revision that the job is bound to; None lets the gateway choose one of the default model."""
    pinned: bool = False
    """Whether the request names the revision, so that the job is never bound to another."""
    n: int | None = None
    """Number of pictures; None takes the model's default."""
    candidates: int | None = None
    """Number of candidates; None takes the model's default, or more while the system is idle."""
    first_candidate: int = 0
    given: tuple[int, ...] = ()
    """Image tokens that are kept of an initial image, by position; `FREE` for those that are drawn anew."""
    strength: float | None = None
    """Share of `given` that is drawn anew."""
    vary: bool = False
    diversity: float = 0.0
    second_pass: SecondPass | None = None
    priority: Priority = Priority.INTERACTIVE
    labels: dict[str, str] = field(default_factory=dict)
    webhook: JobWebhook | None = None
    tenant: str = DEFAULT_TENANT
    """Id of the tenant whose job it is."""
    request_id: str | None = None
    request_hash: str | None = None
    """Hash of the request's content."""
    trace: Trace | None = None
