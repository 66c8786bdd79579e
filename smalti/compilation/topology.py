"""Devices to compile for: those of this machine, or chips that are not there."""

import math
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final

import jax

from smalti.errors import InvalidInputError

_CHIPS: Final = re.compile(r"(v\d+[a-z]*):(\d{1,3}(?:x\d{1,3}){1,2})")
_ENVIRONMENT: Final[Mapping[str, str]] = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What lets Google's compiler work on a machine without a TPU; otherwise it waits for a server that describes one."""
_ONE_HOST: Final = {"v5e": 8, "v6e": 8, "v4": 4, "v5p": 4}
"""Chips of the largest host of a kind. A topology of up to so many is that of one host."""


def find_topology(text: str, *, field: str = "for") -> tuple[jax.Device, ...]:
    """Returns the devices of a text: `cpu` and `gpu` for those of this machine, or chips such as `v5e:2x2`.

    Call it before anything else asks JAX for its devices.

    Args:
        text: the text.
        field: the argument that it comes from, for errors.

    Raises:
        InvalidInputError: there are no such devices, or their compiler is not installed.
    """
    if text in ("cpu", "gpu"):
        try:
            return tuple(jax.devices(text))
        except RuntimeError as error:
            raise InvalidInputError(field, f"{text}: this machine has none; {_line(error)}") from error
    chips = _CHIPS.fullmatch(text)
    if chips is None:
        raise InvalidInputError(
            field, f"{text!r} must be cpu, gpu, or a kind of TPU and its chips, such as v5e:2x2"
        )
    if find_spec("libtpu") is None:
        raise InvalidInputError(field, f"{text} needs Google's compiler: pip install 'smalti[tpu]'")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # The process itself computes on the CPU, on a machine with a TPU too.
    jax.config.update("jax_platforms", "cpu")
    return tuple(_topology(chips[1], chips[2], field))


def _topology(kind: str, shape: str, field: str) -> list[jax.Device]:
    from jax.experimental import topologies

    sizes = [int(each) for each in shape.split("x")]
    bounds = {}
    if math.prod(sizes) <= _ONE_HOST.get(kind, 0):
        bounds = {"chips_per_host_bounds": (*sizes, *[1] * (3 - len(sizes)))}
    try:
        found = topologies.get_topology_desc(f"{kind}:{shape}", platform="tpu", **bounds)
    except Exception as error:  # It depends on the version what is raised.
        raise InvalidInputError(field, f"{kind}:{shape}: {_line(error)}") from error
    return list(found.devices)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
