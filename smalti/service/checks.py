"""What the services check of a call in the same way."""

from smalti.errors import InvalidInputError
from smalti.messages import MAX_PROMPT_LENGTH
from smalti.parameters import check_prompt


def checked_prompt(prompt: str, field: str = "prompt") -> str:
    """Returns a prompt without the space around it; raises `InvalidInputError` when it is blank or too long."""
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise InvalidInputError(field, f"has {len(prompt)} characters; the most is {MAX_PROMPT_LENGTH}")
    return check_prompt(prompt)


def check_number(number: int, most: int, field: str, what: str) -> None:
    """Raises `InvalidInputError` when a list has no entries or more than the most; `what` are the entries."""
    if not 1 <= number <= most:
        raise InvalidInputError(field, f"has {number} {what}; 1 to {most} are taken")
