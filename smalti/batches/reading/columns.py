"""The columns of an input: those that have a meaning, under the names that the input gives them."""

from collections.abc import Mapping, Sequence
from typing import Final

from smalti.batches.reading.rows import INPUT
from smalti.errors import InvalidInputError
from smalti.foreign_text import printable
from smalti.parameters import SamplingParameters

SAMPLING_COLUMNS: Final = tuple(SamplingParameters.model_fields)
COLUMNS: Final = (
    "prompt",
    "id",
    "seed",
    "n",
    "candidates",
    "vary",
    "diversity",
    "sampling",
    *SAMPLING_COLUMNS,
)
"""The columns that have a meaning."""
_MAX_TOLD: Final = 12
"""Columns of an input that an error names."""


class Columns:
    """Which column of an input has which meaning."""

    def __init__(self, renamed: Mapping[str, str] | None = None, *, ignore_unknown: bool = False) -> None:
        """Checks the names.

        Args:
            renamed: the columns of `COLUMNS` that have another name in the input, and that name.
            ignore_unknown: whether columns without a meaning are ignored.

        Raises:
            InvalidInputError: a name is unknown, empty, or given twice.
        """
        self._renamed = dict(renamed or {})
        self._ignore_unknown = ignore_unknown
        for meaning, name in self._renamed.items():
            if meaning not in COLUMNS:
                raise InvalidInputError(
                    f"columns.{printable(meaning)[:80]}", f"is not known; columns are {', '.join(COLUMNS)}"
                )
            if not name:
                raise InvalidInputError(f"columns.{meaning}", "must not be empty")
        # A column keeps its own name unless it is renamed, or another one takes its name.
        self._meanings = {name: name for name in COLUMNS if name not in self._renamed}
        for meaning, name in self._renamed.items():
            if list(self._renamed.values()).count(name) > 1:
                raise InvalidInputError(f"columns.{meaning}", f"{name!r:.80} has two meanings; give one")
            self._meanings[name] = meaning

    def name_of(self, meaning: str) -> str:
        """Returns the name that a column of `COLUMNS` has in the input."""
        return self._renamed.get(meaning, meaning)

    def meanings(self, names: Sequence[str]) -> list[str | None]:
        """Returns the meaning of each column of an input; None for one that is ignored.

        Raises:
            InvalidInputError: names the column that is unknown or occurs twice.
        """
        found: list[str | None] = []
        for position, name in enumerate(names, 1):
            meaning = self._meanings.get(name)
            if meaning is not None and meaning in found:
                raise InvalidInputError(INPUT, f"column {name!r} occurs twice; rename one of the two")
            if meaning is None and not self._ignore_unknown:
                what = (
                    f"column {printable(name)!r:.100}" if name else f"column {position}, which has no name,"
                )
                raise InvalidInputError(
                    INPUT, f"{what} has no meaning; give a known column its name, or ignore such columns"
                )
            found.append(meaning)
        return found

    def check_header(self, names: Sequence[str]) -> list[str | None]:
        """Returns the meanings of all columns of an input.

        Raises:
            InvalidInputError: a column is missing or unknown, or occurs twice.
        """
        for meaning in ("prompt", *self._renamed):
            if (name := self.name_of(meaning)) not in names:
                shown = ", ".join(repr(printable(each))[:60] for each in names[:_MAX_TOLD])
                more = ", ..." if len(names) > _MAX_TOLD else ""
                raise InvalidInputError(
                    INPUT, f"there is no column {name!r:.100}; the input has {shown or 'none'}{more}"
                )
        return self.meanings(names)
