"""Compiled programs as bytes. No other module uses JAX's serialization, which changes with its versions."""

import json
import pickle
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import jax
from jax.experimental import serialize_executable


class UnfitProgramError(Exception):
    """A program cannot be written, or was not made for what reads it; says why."""


def dump(compiled: jax.stages.Compiled, tree: Any, devices: Sequence[jax.Device]) -> bytes:
    """Returns a program as bytes.

    Args:
        compiled: the program; it takes and returns leaves.
        tree: the tree of the leaves that it returns.
        devices: the devices that it runs on, in its own order.

    Raises:
        UnfitProgramError: this version of JAX cannot write programs for these devices.
    """
    header = {**_made_by(devices[0].client), "devices": [device.id for device in devices]}
    return json.dumps(header).encode() + b"\n" + pack(compiled, tree)


def load(content: bytes) -> tuple[Callable[..., Sequence[Any]], Any]:
    """Returns a program that `dump` has written, and its tree.

    This runs whatever the content says, so it must be trusted.

    Raises:
        UnfitProgramError: it was made by another version or for other devices, or cannot be read.
    """
    header, _, pickled = content.partition(b"\n")
    try:
        described = json.loads(header)
        ids = described.pop("devices")
    except (AttributeError, KeyError, ValueError) as error:
        raise UnfitProgramError("it does not begin with what made it") from error
    here = _made_by(jax.devices()[0].client)
    if described != here:
        raise UnfitProgramError(f"it was made by {_words(described)}; this is {_words(here)}")
    return unpack(pickled, ids)


def pack(compiled: jax.stages.Compiled, tree: Any) -> bytes:
    """Returns a program as bytes, without what made it; raises `UnfitProgramError` as `dump` does."""
    try:
        executable, in_tree, out_tree = serialize_executable.serialize(compiled)
        return pickle.dumps((executable, in_tree, out_tree, tree))
    except Exception as error:  # It depends on the version and on the device what is raised.
        raise UnfitProgramError(f"JAX {jax.__version__} cannot write it ({error!r})") from error


def unpack(content: bytes, ids: Sequence[int]) -> tuple[Callable[..., Sequence[Any]], Any]:
    """Returns a program that `pack` has written, and its tree; the content must be trusted, as with `load`.

    Args:
        content: the bytes.
        ids: the ids of its devices, in its own order.

    Raises:
        UnfitProgramError: a device is not here, or the content cannot be read.
    """
    by_id = {device.id: device for device in jax.devices()}
    if missing := [each for each in ids if each not in by_id]:
        raise UnfitProgramError(f"it was made for devices that are not here: {missing}")
    try:
        executable, in_tree, out_tree, tree = pickle.loads(content)
        loaded = serialize_executable.deserialize_and_load(
            executable, in_tree, out_tree, execution_devices=[by_id[each] for each in ids]
        )
    except Exception as error:  # As above.
        raise UnfitProgramError(f"JAX {jax.__version__} cannot read it ({error!r})") from error
    return loaded, tree


def _made_by(client: Any) -> dict[str, str]:
    return {
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "platform": client.platform,
        "platform_version": client.platform_version,
    }


def _words(described: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in described.items())
