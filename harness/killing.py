"""Code that ends at a failpoint, as if its process were killed there."""

from collections.abc import Iterator
from contextlib import contextmanager

from smalti.service import failpoints


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_at(wanted: str) -> Iterator[None]:
    """Lets the code of the block end at a failpoint, by `Killed`."""
    before = failpoints.reach

    def reach(point: str, **about: object) -> None:
        if point == wanted:
            raise Killed

    failpoints.reach = reach
    try:
        yield
    finally:
        failpoints.reach = before
