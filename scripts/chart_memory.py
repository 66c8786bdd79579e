"""Writes what the chart knows of memory: that of devices, and what a generator of a known model needs of it."""

from pathlib import Path
from typing import Any, Final

import jax.numpy as jnp
import yaml

from smalti.engines.generator.memory import DEVICE_GIB, JAX_SHARE, WORKING_BYTES, Footprint
from smalti.engines.generator.partition import INT8_CACHE, INT8_WEIGHTS
from smalti.models.bart import DalleBartConfig
from smalti.registry.published import MEGA, MINI

FILE: Final = Path(__file__).resolve().parent.parent / "deploy" / "helm" / "smalti" / "files" / "memory.yaml"
TYPES: Final = {
    "tpu-v5-lite-podslice": "v5e",
    "tpu-v5-lite-device": "v5e",
    "tpu-v6e-slice": "v6e",
    "tpu-v5p-slice": "v5p",
    "NVIDIA-L4": "L4",
    "NVIDIA-H100-80GB-HBM3": "H100",
    "NVIDIA-H100-PCIe": "H100",
}
"""Kinds of devices, by the label of their nodes that `accelerator.type` names."""
HEAD: Final = (
    "# Written by `python -m scripts.chart_memory` from the shapes of the models. Bytes, but for `gib`.\n"
)


def main() -> None:
    """Writes the file."""
    FILE.write_text(text(), encoding="utf-8")


def text() -> str:
    """Returns the file."""
    found: dict[str, Any] = {
        "working": WORKING_BYTES,
        "share": JAX_SHARE,
        "devices": {each: {"name": kind, "gib": DEVICE_GIB[kind]} for each, kind in TYPES.items()},
        "models": {
            name: {kind: _fields(config, on_tpu=kind == "tpu") for kind in ("nvidia", "tpu")}
            for name, config in (
                ("mini", DalleBartConfig.from_fields(MINI)),
                ("mega", DalleBartConfig.from_fields(MEGA)),
            )
        },
    }
    return HEAD + yaml.safe_dump(found, sort_keys=False)


def _fields(config: DalleBartConfig, *, on_tpu: bool) -> dict[str, Any]:
    found = Footprint.of(config, jnp.bfloat16, on_tpu=on_tpu)
    short = Footprint.of(config, jnp.bfloat16, on_tpu=on_tpu, int8_cache=True, int8_weights=True)
    return {
        **_weights(found),
        **_slot(found),
        # What takes the place of the above where SMALTI_GENERATOR_INT8 names it.
        "int8": {INT8_WEIGHTS: _weights(short), INT8_CACHE: _slot(short)},
    }


def _weights(found: Footprint) -> dict[str, int]:
    return {"weights": found.weights, "splitWeights": found.split_weights}


def _slot(found: Footprint) -> dict[str, int]:
    return {"slot": found.slot, "splitSlot": found.split_slot}


if __name__ == "__main__":
    main()
