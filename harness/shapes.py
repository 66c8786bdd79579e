"""Checks annotations on every call while tests run: shapes and types of arrays, and everything else."""

from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import install_import_hook

PACKAGES = [
    "smalti.checkpoints",
    "smalti.engines",
    "smalti.models",
    "smalti.pictures",
    "smalti.pipeline",
    "smalti.rpc",
    "smalti.service",
    "smalti.services",
    "smalti.text",
    "smalti.training",
]
"""Packages whose annotations are checked."""

# As for mypy, an int may stand for a float. jaxtyping decorates each method by itself, where beartype cannot resolve
# `Self`.
check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({Self: object})))


def check_annotations() -> None:
    """Checks the annotations of `PACKAGES`; to be called before any of them is imported."""
    install_import_hook(PACKAGES, f"{__name__}.check")
