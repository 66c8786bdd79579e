"""What a program is called with: as text that determines it, and as words for how two calls differ."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from hashlib import sha256
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding

from smalti.compilation.target import target

Call = dict[str, Any]
"""What a program is called with, as values for JSON."""

_MAX_WORDS: Final = 60


def machine_key(name: str, device: jax.Device, **parts: Any) -> str:
    """Returns the key of a program for this machine: of its call, and of everything else that it depends on."""
    return _digest(
        {"name": name, "target": target(device), **{part: describe(parts[part]) for part in parts}}
    )


def call_key(name: str, call: Call) -> str:
    """Returns the key of a program by its call alone."""
    return _digest({"name": name, **call})


def describe_call(
    function: Callable[..., Any],
    *,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    static: frozenset[int],
    donated: Sequence[int],
) -> Call:
    """Returns what a function is called with, the same on the machine that compiles and on the one that runs it.

    Arrays that every device holds as a whole are all alike: those that belong to no device yet, and those that do.

    Args:
        function: the function, whose parameters give their names.
        args: the arguments; arrays may be stood for by `jax.ShapeDtypeStruct`.
        kwargs: more static arguments.
        static: places of the static arguments.
        donated: places of the arguments whose memory the program may use for its results.
    """
    names = list(inspect.signature(function).parameters)
    arrays: dict[str, Any] = {}
    trees: dict[str, str] = {}
    for place, arg in enumerate(args):
        if place in static:
            continue
        leaves, tree = jax.tree_util.tree_flatten_with_path(arg)
        trees[names[place]] = sha256(str(tree).encode()).hexdigest()[:16]
        for path, leaf in leaves:
            arrays[names[place] + jax.tree_util.keystr(path)] = _portable(leaf)
    return {
        "static": {
            **{names[place]: describe(args[place]) for place in sorted(static)},
            **{name: describe(each) for name, each in sorted(kwargs.items())},
        },
        "arrays": arrays,
        "trees": trees,
        "donated": [names[place] for place in donated if place < len(args)],
    }


def difference(there: Any, here: Any, path: str = "") -> str:
    """Returns where two values for JSON differ first, in words; empty if they are equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in (*there, *(each for each in here if each not in there)):
            found = difference(there.get(name), here.get(name), f"{path}.{name}" if path else str(name))
            if found:
                return found
        return ""
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for mine, yours in zip(there, here, strict=True):
            if found := difference(mine, yours, path):
                return found
        return ""
    return "" if there == here else f"{path} is {_short(there)} there and {_short(here)} here"


def describe(value: Any) -> Any:
    """Returns a value as JSON that determines it."""
    if isinstance(value, Mesh):
        on: list[Any] = list(value.devices.flat)
        devices = [[device.id, device.device_kind, device.process_index] for device in on]
        return ["mesh", list(map(list, value.shape.items())), list(map(str, value.axis_types)), devices]
    if isinstance(value, NamedSharding):
        return ["sharding", describe(value.mesh), str(value.spec), str(value.memory_kind)]
    if isinstance(value, Sharding):
        ids: list[int] = sorted(device.id for device in devices_of(value))
        return [type(value).__name__, ids, str(value.memory_kind)]
    if is_dataclass(value):
        return [
            type(value).__name__,
            {each.name: describe(getattr(value, each.name)) for each in fields(value)},
        ]
    if isinstance(value, tuple | list):
        return [describe(each) for each in value]
    if isinstance(value, dict):
        return {str(name): describe(each) for name, each in value.items()}
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    described = repr(value)
    if " at 0x" in described:
        raise TypeError(
            f"{described} does not determine a program; give a dataclass, or something with a full repr"
        )
    return described


def device_of(leaves: Sequence[Any]) -> jax.Device:
    """Returns the device, or one of the devices, that a program with these arguments runs on."""
    for leaf in leaves:
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None:
            return devices_of(leaf.sharding)[0]
        if isinstance(leaf, jax.Array) and leaf.committed:
            return devices_of(leaf.sharding)[0]
    return jax.devices()[0]


def devices_of(sharding: Sharding) -> list[Any]:
    """Returns the devices of a sharding, in the order of its mesh."""
    return (
        list(sharding.mesh.devices.flat) if isinstance(sharding, NamedSharding) else list(sharding.device_set)
    )


def aval_of(leaf: Any) -> tuple[tuple[int, ...], np.dtype[Any], bool, Sharding | None]:
    """Returns what the program for an argument depends on: shape, type, whether it is weak, and where it must be."""
    if isinstance(leaf, jax.Array):
        return leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding if leaf.committed else None
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding
    array = np.asarray(leaf)
    return array.shape, array.dtype, not isinstance(leaf, np.ndarray | np.generic), None


def _portable(leaf: Any) -> list[Any]:
    shape, dtype, weak, sharding = aval_of(leaf)
    split = None
    if sharding is not None and not sharding.is_fully_replicated:
        split = (
            [list(map(list, sharding.mesh.shape.items())), str(sharding.spec)]
            if isinstance(sharding, NamedSharding)
            else str(sharding)
        )
    # As in JAX, whose arrays have 32 bits unless an option says otherwise.
    return [list(shape), str(jax.dtypes.canonicalize_dtype(dtype)), *(["weak"] if weak else []), split]


def _digest(described: Mapping[str, Any]) -> str:
    return sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _short(value: Any) -> str:
    text = "absent" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MAX_WORDS else f"{text[:_MAX_WORDS]}..."
