"""Dead letters: what is written to them, looking at them, and sending them again."""

from smalti.queue.dead.access import DeadLetters, HeldLetter
from smalti.queue.dead.letters import DeadLetter, LetterFilter

__all__ = ["DeadLetter", "DeadLetters", "HeldLetter", "LetterFilter"]
