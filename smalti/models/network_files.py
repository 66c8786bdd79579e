"""Loading and saving the folder of a network: `config.json` and weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from smalti.checkpoints.loading import Layout, Selector, every, load_parameters, save_parameters
from smalti.compilation import put
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
    """Loads the weights of a folder onto JAX's device, or into the host's memory with `on_host`.

    `load_parameters` documents the other arguments and the errors.
    """
    leaves = load_parameters(folder, expected, layout, select=select)
    if on_host:
        return unflatten(leaves)
    # Popped one by one, so that each host copy is freed once its device copy exists.
    return unflatten({name: put(leaves.pop(name)) for name in list(leaves)})


def save_network(folder: Path, params: Parameters, fields: Mapping[str, Any]) -> None:
    """Writes `config.json` and `model.safetensors` into a folder, which is created if necessary.

    Args:
        folder: the folder.
        params: the weights.
        fields: the fields of `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_parameters(folder, {name: jax.device_get(leaf) for name, leaf in flatten(params).items()})
    write_atomically(folder / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n")
