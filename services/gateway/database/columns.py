"""Types of columns whose values another version, or a hand, may have written: what cannot be read is None.

Otherwise one such row would end every query that finds it.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, Dialect, Enum, TypeDecorator


class _Tolerant(TypeDecorator[Any]):
    cache_ok = True
    impl: Any = JSON

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        process = super().result_processor(dialect, coltype)
        if process is None:
            return None

        def read(value: Any) -> Any:
            try:
                return process(value)
            except (ValueError, LookupError):
                return None

        return read


class ReadableJson(_Tolerant):
    """JSON; None where the text is not JSON."""

    impl = JSON
    cache_ok = True


class ReadableEnum(_Tolerant):
    """The values of an enumeration as text; None where the text is not one of them."""

    impl = Enum
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        """Stores the values, not the names, of an enumeration."""
        super().__init__(
            kind,
            native_enum=False,
            create_constraint=False,
            length=16,
            values_callable=lambda members: [member.value for member in members],
        )
