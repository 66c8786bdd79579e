"""Commands whose libraries belong to an extra say which extra to install."""

from collections.abc import Iterator
from contextlib import contextmanager

from smalti.errors import SmaltiError


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Names the extra to install when an import in the block fails.

    Raises:
        SmaltiError: a library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "smalti"):
            raise
        raise SmaltiError(f"{library} is not installed: pip install 'smalti[{extra}]'") from None
