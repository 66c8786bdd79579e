"""What is asked for: a job before it is accepted, with every value checked."""

from dataclasses import dataclass, field

from pydantic import Field

from smalti.messages import Prompt, ShortText, Trace
from smalti.parameters import Priority, SamplingParameters, Seed
from smalti.validation import Strict


class Parameters(Strict):
    """What a job draws; all that is needed to draw it again, but for the given tokens."""

    model: ShortText
    revision: ShortText
    prompt: Prompt
    n: int
    candidates: int
    first_candidate: int = 0
    seed: Seed
    sampling: SamplingParameters
    keep_rows: int = Field(default=0, ge=0)
    """Rows of tiles that are kept of an initial picture; 0 without one."""


@dataclass(frozen=True)
class JobSpec:
    """A job to accept."""

    prompt: str
    seed: int
    sampling: SamplingParameters
    time_limit: float
    """In seconds."""
    retention: float
    """In seconds."""
    n: int | None = None
    """None for the model's."""
    candidates: int | None = None
    """None for the model's, or more while the system is idle."""
    first_candidate: int = 0
    keep_rows: int = 0
    given: tuple[int, ...] = ()
    """The tokens of the rows that are kept."""
    priority: Priority = Priority.INTERACTIVE
    labels: dict[str, str] = field(default_factory=dict)
    request_id: str | None = None
    request_hash: str | None = None
    """Of the request as it came."""
    trace: Trace | None = None
