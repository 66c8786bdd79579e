"""The tree of errors in the docstring equals that of the classes."""

import importlib
import pkgutil
import re

import smalti
from smalti import errors
from smalti.errors import SmaltiError, SmaltiWarning

INTERNAL = {
    "ClientGoneError",
    "GiveBackError",
    "HandlerError",
    "HoldBackError",
    "PermanentError",
    "RetryError",
    "UnknownFieldError",
    "_OtherModelError",
}
"""Errors within the queue's handlers and the web service; callers of the library never see them."""


def drawn() -> dict[str, tuple[str, set[str]]]:
    """Returns the parent and the other bases of each class in the docstring's tree."""
    tree: dict[str, tuple[str, set[str]]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"^    ([ │├└─]*)(\w+Error)\b", line):
            depth = len(found[1]) // 4
            parent = above[depth - 1] if depth else "Exception"
            tree[found[2]] = (parent, set(re.findall(r"\(also an? (\w+)\)", line)))
            above[depth:] = [found[2]]
    return tree


def subclasses(kind: type[SmaltiError]) -> set[type[SmaltiError]]:
    return {kind}.union(*(subclasses(each) for each in kind.__subclasses__()))


def test_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    real = {
        kind.__name__: (kind.__bases__[0].__name__, {base.__name__ for base in kind.__bases__[1:]})
        for kind in classes
        if issubclass(kind, SmaltiError)
    }
    assert drawn() == real
    assert sorted(errors.__all__) == errors.__all__
    assert set(errors.__all__) == {*real, SmaltiWarning.__name__}


def test_every_public_error_is_in_the_tree() -> None:
    for module in pkgutil.walk_packages(smalti.__path__, "smalti."):
        # Programs, and modules that only Alembic imports.
        if not module.name.endswith("__main__") and "migrations" not in module.name:
            importlib.import_module(module.name)
    elsewhere = {kind.__name__ for kind in subclasses(SmaltiError) if kind.__module__ != "smalti.errors"}
    elsewhere -= {
        kind.__name__ for kind in subclasses(SmaltiError) if not kind.__module__.startswith("smalti.")
    }
    assert elsewhere == INTERNAL
