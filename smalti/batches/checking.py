"""Rows of an input as prompts of a batch: checked as CreateImages checks a request, with every default filled in."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field

from smalti.batches.prompts import (
    MAX_ID_LENGTH,
    MAX_PROBLEM_LENGTH,
    BatchPrompt,
    seed_of_row,
)
from smalti.batches.reading import SAMPLING_COLUMNS, RowProblem, json_type
from smalti.errors import InvalidInputError
from smalti.foreign_text import check_text, parse_json, printable
from smalti.messages import MAX_PROMPT_LENGTH
from smalti.parameters import (
    MAX_SEED,
    Counts,
    Diversity,
    Flag,
    SamplingParameters,
    SecondPass,
    Seed,
    check_counts,
    check_diversity,
    check_prompt,
)
from smalti.validation import Strict

MAX_SHOWN: Final = 60
"""Characters of a refused value that a message repeats."""
_MAX_KEPT: Final = 4096
"""Combinations of parameters that are not checked again."""
_INTEGER: Final = re.compile(r"([+-]?[0-9]{1,40})(?:\.0*)?")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}
_INTEGERS: Final = frozenset({"n", "candidates", "top_k"})

Count = Annotated[int, Field(ge=1, le=1024)]


class BatchDefaults(Strict):
    """What the rows of a batch get that do not say otherwise: what was asked for the batch, or the model's defaults.

    A row without candidates of its own gets `default_candidates`, and more if its n is greater, unless the batch asks
    for a number of candidates. A row without n gets `default_n`, and fewer if it has fewer candidates, unless the batch
    asks for an n. So a row means what it would mean in CreateImages.
    """

    seed: Seed = 0
    """The seed of the batch, from which the seeds of the rows follow."""
    n: Count | None = None
    """The n that was asked for the batch; None if it was not."""
    candidates: Count | None = None
    """The number of candidates that was asked for the batch; None if it was not."""
    default_n: Count
    """The model's n."""
    default_candidates: Count
    """The model's number of candidates."""
    max_candidates: Count = 1024
    """The most candidates that a row may have."""
    sampling: SamplingParameters
    vary: Flag = False
    diversity: Diversity = 0.0
    second_pass: SecondPass | None = None

    def counts(self, n: int | None = None, candidates: int | None = None) -> Counts:
        """Returns the counts of a row.

        Args:
            n: the number of pictures that the row asks for; None if it does not.
            candidates: its number of candidates; None if it has none.

        Raises:
            InvalidInputError: a count is out of range, or `n` is larger than `candidates`.
        """
        n = self.n if n is None else n
        candidates = self.candidates if candidates is None else candidates
        if candidates is None:
            candidates = min(max(self.default_candidates, n or 1), self.max_candidates)
        counts = check_counts(min(self.default_n, candidates) if n is None else n, candidates)
        if counts.candidates > self.max_candidates:
            raise InvalidInputError(
                "candidates", f"must be from 1 to {self.max_candidates}, not {counts.candidates}"
            )
        return counts


class _Parameters(NamedTuple):
    """What a row says beside its id, its prompt and its seed."""

    n: int
    candidates: int
    sampling: SamplingParameters
    vary: bool
    diversity: float


class RowChecker:
    """Makes prompts of rows."""

    def __init__(self, defaults: BatchDefaults) -> None:
        """Checks the defaults.

        Raises:
            InvalidInputError: more pictures are asked for than candidates.
        """
        self._defaults = defaults
        self._usual = self._parameters({})
        self._kept: dict[tuple[tuple[str, type, Any], ...], _Parameters] = {}

    def prompt(self, row: int, fields: Mapping[str, Any], given: tuple[int, ...] = ()) -> BatchPrompt:
        """Returns the prompt of a row.

        Args:
            row: number of the row.
            fields: its values by the names of `COLUMNS`; None and empty texts take the default.
            given: image tokens of its initial image, if it has one.

        Raises:
            InvalidInputError: names the column that cannot be used.
        """
        others: dict[str, Any] = {}
        row_id, seed = None, None
        for name, value in fields.items():
            if name == "prompt" or _is_empty(value):
                continue
            if name == "id":
                row_id = _id(value)
            elif name == "seed":
                seed = _seed(value)
            else:
                others[name] = value
        prompt = _prompt(fields.get("prompt"))
        parameters = self._parameters_of(others) if others else self._usual
        defaults = self._defaults
        return BatchPrompt(
            row=row,
            id=str(row) if row_id is None else row_id,
            prompt=prompt,
            seed=seed_of_row(defaults.seed, row) if seed is None else seed,
            n=parameters.n,
            candidates=parameters.candidates,
            sampling=parameters.sampling,
            vary=parameters.vary,
            diversity=parameters.diversity,
            second_pass=defaults.second_pass,
            given=given,
        )

    def invalid(self, row: int, fields: Mapping[str, Any], problem: RowProblem) -> BatchPrompt:
        """Returns an invalid row as a prompt that is not drawn, with what can be shown of it."""
        prompt = fields.get("prompt")
        shown = printable(prompt)[:MAX_PROMPT_LENGTH].strip() if isinstance(prompt, str) else ""
        try:
            row_id = _id(fields["id"]) if not _is_empty(fields.get("id")) else str(row)
        except InvalidInputError:
            row_id = str(row)
        column = f"column {problem.column!r}: " if problem.column else ""
        return BatchPrompt(
            row=row,
            id=row_id,
            prompt=shown,
            seed=seed_of_row(self._defaults.seed, row),
            n=1,
            candidates=1,
            sampling=self._defaults.sampling,
            problem=f"{column}{problem.problem}"[:MAX_PROBLEM_LENGTH],
            invalid=True,
        )

    def _parameters_of(self, fields: dict[str, Any]) -> _Parameters:
        flat = _flat(fields)
        # With its type, since 1, 1.0 and true are equal.
        key = tuple((name, type(value), value) for name, value in flat.items())
        try:
            if (kept := self._kept.get(key)) is not None:
                return kept
        except TypeError:  # A list or an object, which is refused.
            return self._parameters(flat)
        parameters = self._parameters(flat)
        if len(self._kept) < _MAX_KEPT:
            self._kept[key] = parameters
        return parameters

    def _parameters(self, fields: dict[str, Any]) -> _Parameters:
        defaults = self._defaults
        values = {name: _converted(name, value) for name, value in fields.items()}
        counts = defaults.counts(values.get("n"), values.get("candidates"))
        sampling = {name: values[name] for name in SAMPLING_COLUMNS if name in values}
        return _Parameters(
            n=counts.n,
            candidates=counts.candidates,
            sampling=defaults.sampling.replace(**sampling) if sampling else defaults.sampling,
            vary=values.get("vary", defaults.vary),
            diversity=check_diversity(values.get("diversity", defaults.diversity)),
        )


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a row with those of its column `sampling` beside the others."""
    sampling = fields.pop("sampling", None)
    if sampling is None:
        return fields
    if isinstance(sampling, str):
        sampling = parse_json(sampling, "sampling")
    if not isinstance(sampling, dict):
        raise InvalidInputError("sampling", f"must be an object, not {json_type(sampling)}")
    for name, value in sampling.items():
        if name not in SAMPLING_COLUMNS:
            raise InvalidInputError(
                "sampling", f"{printable(str(name))!r:.60} is none of {', '.join(SAMPLING_COLUMNS)}"
            )
        if _is_empty(value):
            continue
        if name in fields:
            raise InvalidInputError(name, "is given twice, once in sampling; give one")
        fields[name] = value
    return fields


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _prompt(value: Any) -> str:
    if value is None:
        raise InvalidInputError("prompt", "is missing")
    if not isinstance(value, str):
        raise InvalidInputError("prompt", f"must be a text, not {json_type(value)}")
    prompt = check_prompt(value)
    if len(prompt) > MAX_PROMPT_LENGTH:
        raise InvalidInputError(
            "prompt", f"must have at most {MAX_PROMPT_LENGTH} characters, got {len(prompt)}"
        )
    return prompt


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidInputError("id", f"must be a text or an integer, not {_shown(value)}")
    found = check_text(str(value), "id").strip()
    if len(found) > MAX_ID_LENGTH:
        raise InvalidInputError("id", f"must have at most {MAX_ID_LENGTH} characters, got {len(found)}")
    return found


def _seed(value: Any) -> int:
    seed = _integer("seed", value)
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInputError("seed", f"must be from 0 to 2^63 - 1, not {_shown(value)}")
    return seed


def _converted(name: str, value: Any) -> Any:
    if name == "vary":
        found = value if isinstance(value, bool) else _FLAGS.get(str(value).strip().lower())
        if found is None:
            raise InvalidInputError(name, f"must be true or false, not {_shown(value)}")
        return found
    return _integer(name, value) if name in _INTEGERS else _number(name, value)


def _integer(name: str, value: Any) -> int:
    """Returns an integer; a table may have it as text, or as a number like 4.0."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    # A greater number may have been rounded.
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    found = _INTEGER.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise InvalidInputError(name, f"must be an integer, not {_shown(value)}")
    return int(found[1])


def _number(name: str, value: Any) -> float:
    if isinstance(value, str):
        found = _NUMBER.fullmatch(value.strip())
        if found is not None:
            return float(found[0])
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300:
        return float(value)
    raise InvalidInputError(name, f"must be a number, not {_shown(value)}")


def _shown(value: Any) -> str:
    return printable(repr(value))[:MAX_SHOWN]
