"""Checks of calls that several services share."""

from smalti.errors import InvalidInputError
from smalti.messages import MAX_PROMPT_LENGTH
from smalti.parameters import check_prompt


def checked_prompt(prompt: str, field: str = "prompt") -> str:
    """Returns the stripped prompt; raises `InvalidInputError` if it is blank or too long."""
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise InvalidInputError(field, f"has {len(prompt)} characters; the limit is {MAX_PROMPT_LENGTH}")
    return check_prompt(prompt)


def check_count(count: int, limit: int, *, field: str, noun: str) -> None:
    """Checks the length of a list.

    Args:
        count: the length.
        limit: the maximum length.
        field: the path of the list in the request.
        noun: what the list contains, in the plural.

    Raises:
        InvalidInputError: the list is empty or too long; names the field.
    """
    if not 1 <= count <= limit:
        raise InvalidInputError(field, f"has {count} {noun}; must have 1 to {limit}")
