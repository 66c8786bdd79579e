"""The findings of an examination."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from smalti.errors import InvalidInputError, SmaltiError, UnavailableError


class State(StrEnum):
    """What a finding means."""

    GOOD = "good"
    NOTE = "note"
    """Works, but perhaps not as it was meant."""
    WAITS = "waits"
    """Does not answer now; services wait for it."""
    FAILS = "fails"
    """Cannot work until something is changed."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found about one thing."""

    subject: str
    state: State
    text: str
    """One line, which names the variable and the remedy if something is wrong."""


def ask(subject: str, question: Callable[[], str | Finding]) -> Finding:
    """Asks about a thing; an error becomes the finding.

    Args:
        subject: the thing.
        question: returns what is there, in a few words, or the finding itself.
    """
    try:
        answer = question()
        return (
            answer if isinstance(answer, Finding) else Finding(subject=subject, state=State.GOOD, text=answer)
        )
    except InvalidInputError as error:
        return Finding(subject=subject, state=State.FAILS, text=str(error))
    except UnavailableError as error:
        passes = getattr(error, "transient", True)
        return Finding(subject=subject, state=State.WAITS if passes else State.FAILS, text=str(error))
    except SmaltiError as error:
        return Finding(subject=subject, state=State.FAILS, text=str(error))
    except ModuleNotFoundError as error:
        return Finding(subject=subject, state=State.NOTE, text=f"not asked: {error.name} is not installed")
