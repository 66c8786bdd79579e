"""What may be drawn is the operator's to say: the interface of policies, which packages and services implement.

The gateway asks a policy about each prompt before it accepts the job, and about pictures before anybody gets them. A
package offers one as an entry point of the group `smalti.policies`: a callable without arguments that returns a
`Policy`. A service offers `PolicyService` of `protos/smalti/v1/policy.proto`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

__all__ = [
    "ENTRY_POINTS",
    "PERMITTED",
    "PictureToCheck",
    "PicturesToCheck",
    "Policy",
    "PromptToCheck",
    "Verdict",
]

ENTRY_POINTS: Final = "smalti.policies"
"""The group of the entry points that are policies."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer of a policy."""

    refused: bool
    message: str = ""
    """One line for the caller that says why; may be empty."""


PERMITTED: Final = Verdict(refused=False)


@dataclass(frozen=True, kw_only=True)
class PromptToCheck:
    """A prompt before its acceptance."""

    prompt: str
    labels: Mapping[str, str] = field(default_factory=dict)
    """The labels of the job."""
    model: str = ""
    """Name of the model that would draw it."""
    revision: str = ""
    """Revision of the model."""


@dataclass(frozen=True, kw_only=True)
class PictureToCheck:
    """A picture before anybody gets it."""

    candidate: int
    """Index among the candidates of the job."""
    content: bytes
    """Content of the PNG file."""
    unfinished: bool = False
    """Whether it is a preview of an unfinished picture, whose missing rows are grey."""


@dataclass(frozen=True, kw_only=True)
class PicturesToCheck:
    """Pictures of a job before anybody gets them."""

    job_id: str
    prompt: str
    pictures: Sequence[PictureToCheck]
    labels: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    revision: str = ""


@runtime_checkable
class Policy(Protocol):
    """What may be drawn. Called from several threads at once; an exception counts as no answer."""

    def check_prompt(self, asked: PromptToCheck) -> Verdict:
        """Returns whether a prompt may be drawn."""
        ...

    def check_pictures(self, asked: PicturesToCheck) -> Sequence[Verdict]:
        """Returns whether pictures may be handed out, a verdict for each."""
        ...
