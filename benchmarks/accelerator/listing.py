"""The rows by name, the packages that they need, and which have been measured; imports no JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

NEEDED = {
    "flax": "flax",
    "jax": "jax",
    "jaxtyping": "jaxtyping",
    "ml_dtypes": "ml_dtypes",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "pydantic_settings": "pydantic-settings",
}
"""The modules that the rows import, and the packages that have them."""

GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL,+DYNAMIC_SLICE_FUSION --xla_gpu_graph_min_graph_size=1"
"""Lets XLA record the whole loop of a dispatch as a CUDA graph, which spares the time for starting each kernel."""
NO_TRITON = "--xla_gpu_enable_triton_gemm=false"
"""Leaves all products to cuBLAS."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A measurement in a process of its own."""

    measure: str
    """Name of its function in `benchmarks.accelerator.rows`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: str = ""
    """Flags of XLA that the row tries, in addition to those of the environment."""
    measured: bool = False
    """Whether `docs/performance.md` has it from a chip."""


def _tokens(shape: str, slots: int, **options: Any) -> Row:
    return Row(measure="tokens", options={"shape": shape, "slots": slots, **options})


def _torch(shape: str, slots: int, *, measured: bool = False) -> Row:
    return Row(measure="torch_tokens", options={"shape": shape, "slots": slots}, measured=measured)


def _attention(kind: str) -> Row:
    return Row(measure="attention", options={"shape": "mini", "slots": 16, "kind": kind})


ROWS: Mapping[str, Row] = {
    "limits": Row(measure="limits", measured=True),
    # Not measured in full: there were no golden pictures then.
    "golden": Row(measure="golden"),
    "mini-16": Row(measure="tokens", options={"shape": "mini", "slots": 16}, measured=True),
    "decode": Row(measure="decode", measured=True),
    "torch-mini-16": _torch("mini", 16, measured=True),
    "mega-16": _tokens("mega", 16),
    "mini-64": _tokens("mini", 64),
    "mega-64": _tokens("mega", 64),
    "mini-16-graphs": Row(
        measure="tokens", options={"shape": "mini", "slots": 16, "variant": "graphs"}, flags=GRAPHS
    ),
    "mini-16-one-block": _tokens("mini", 16, blocks=1, variant="one block"),
    "mini-16-rows-first": _tokens("mini", 16, layout="rows_first", variant="rows first"),
    "mini-16-int8": _tokens("mini", 16, int8=("weights", "cache")),
    "mega-16-int8": _tokens("mega", 16, int8=("weights", "cache")),
    "attention-heads-first": _attention("heads-first"),
    "attention-one-block": _attention("one-block"),
    "attention-rows-first": _attention("rows-first"),
    "attention-xla": _attention("xla"),
    "attention-cudnn": _attention("cudnn"),
    "torch-mega-16": _torch("mega", 16),
    "torch-mini-64": _torch("mini", 64),
    "torch-mega-64": _torch("mega", 64),
    "mini-16-no-triton": Row(
        measure="tokens", options={"shape": "mini", "slots": 16, "variant": "no Triton"}, flags=NO_TRITON
    ),
    "mega-16-graphs": Row(
        measure="tokens", options={"shape": "mega", "slots": 16, "variant": "graphs"}, flags=GRAPHS
    ),
    "mega-16-weights": _tokens("mega", 16, int8=("weights",)),
    "mini-64-int8": _tokens("mini", 64, int8=("weights", "cache")),
    "mega-64-cache": _tokens("mega", 64, int8=("cache",)),
    "mega-64-int8": _tokens("mega", 64, int8=("weights", "cache")),
}
"""The cheapest and most valuable first."""

MISSING = ("limits", *(name for name, row in ROWS.items() if not row.measured))
"""The rows that `docs/performance.md` lacks, and the limits, which the others are compared with."""


def missing_packages() -> list[str]:
    """Returns the packages that the rows need and that are not installed."""
    return [package for module, package in NEEDED.items() if find_spec(module) is None]
