"""Values from outside: checked by pydantic, refused in one line that names the field."""

from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from smalti.errors import InvalidInputError

MAX_SHOWN = 100
"""Characters of a refused value that a message repeats."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a value was refused."""

    field: str
    """Path of the field, its parts joined by dots; empty if the problem is the value as a whole."""
    message: str
    """The problem, with the given value if that helps."""

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


def first_problem(error: ValidationError, *, show_value: bool = True) -> Problem:
    """Returns the first problem that pydantic found.

    Args:
        error: pydantic's error.
        show_value: whether the message repeats the value; False where it may be private or very long.
    """
    first = error.errors(include_url=False, include_input=show_value)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return Problem(field=field, message="there is no such key")
    message = first["msg"].removeprefix("Value error, ")
    # Messages of our own validators begin as they should, some with the name of a variable.
    if first["type"] != "value_error":
        message = message[:1].lower() + message[1:]
    # A problem of the whole names what it found itself, and a missing field has no value.
    if show_value and field and first["type"] != "missing":
        message = f"{message}, not {repr(first['input'])[:MAX_SHOWN]}"
    return Problem(field=field, message=message)


class Strict(BaseModel):
    """A frozen value object whose fields are checked; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def check(cls, **fields: Any) -> Self:
        """Makes the object.

        Raises:
            InvalidInputError: names the first field that was refused, what is wrong, and what was given.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            problem = first_problem(error)
            raise InvalidInputError(problem.field, problem.message) from None
