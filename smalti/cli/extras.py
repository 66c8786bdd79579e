"""Commands whose libraries belong to an extra say which extra to install."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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


def require_training(purpose: str, *modules: str) -> None:
    """Checks, before the work begins, that modules of the extra `training` are installed.

    Args:
        purpose: what needs them, as the error says it.
        modules: names of top-level modules.

    Raises:
        SmaltiError: a module is missing.
    """
    for module in modules:
        if find_spec(module) is None:
            raise SmaltiError(f"{module} is not installed; {purpose} needs: pip install 'smalti[training]'")
