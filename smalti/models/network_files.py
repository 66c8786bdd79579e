"""A network's folder: `config.json` beside its weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from smalti.checkpoints.loading import Layout, Selector, every, load_parameters, save_parameters
from smalti.files import write_atomically
from smalti.models.layers import Parameters, flatten, unflatten


def load_network(
    folder: Path,
    expected: Mapping[str, tuple[int, ...]],
    layout: Layout,
    *,
    select: Selector = every,
    on_host: bool = False,
) -> Parameters:
    """Loads the weights of a folder onto JAX's device, or leaves them in the host's memory.

    See `load_parameters` for the other arguments and what is raised.
    """
    leaves = load_parameters(folder, expected, layout, select=select)
    if on_host:
        return unflatten(leaves)
    # Taken out one by one, so that host copies do not all live beside the device's.
    return unflatten({name: jnp.asarray(leaves.pop(name)) for name in list(leaves)})


def save_network(folder: Path, params: Parameters, fields: Mapping[str, Any]) -> None:
    """Writes `config.json` and `model.safetensors` into a folder, which is made if it is not there.

    Args:
        folder: where.
        params: the weights.
        fields: what `config.json` says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_parameters(folder, {name: jax.device_get(leaf) for name, leaf in flatten(params).items()})
    write_atomically(folder / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n")
