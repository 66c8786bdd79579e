"""What a compiled program depends on beside its own shapes: the machine, the versions, the flags, and the code."""

import hashlib
import os
import platform as machine
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax

CODE = ("compilation", "engines", "models", "parameters.py")
"""Packages and modules of `smalti` whose code decides what is compiled."""

_PACKAGES = ("smalti", "jax", "jaxlib", "flax", "numpy", "ml_dtypes", "libtpu")
_VARIABLES = re.compile(r"(XLA|LIBTPU|TPU|CUDA|NVIDIA|TF)_\w+")
"""Environment variables that the compiler or a device's library may read."""
_OPTIONS = re.compile(
    r"compilation_cache|persistent_cache|log|explain|dump|traceback|transfer_guard|pprint|debug_info"
)
"""Names of JAX's options that do not change what is compiled."""
_MEANING = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
"""JAX's options that change what a program computes."""
_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
"""Variables with flags of the compiler."""


@cache
def target(device: jax.Device) -> Mapping[str, object]:
    """Returns what programs for a device depend on, as values for JSON.

    Args:
        device: the device; it may be one of a topology that is not there.
    """
    client = device.client
    described: dict[str, object] = {
        "platform": client.platform,
        "platform_version": client.platform_version,
        "device": device.device_kind,
        "code": code_digest(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "options": {
            name: str(value) for name, value in sorted(jax.config.values.items()) if not _OPTIONS.search(name)
        },
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)
        },
    }
    return described | _own_processor(client.platform)


def portable_target(device: jax.Device) -> dict[str, object]:
    """Returns what programs that are compiled ahead depend on, as values for JSON.

    It leaves out what differs between a machine with the device and one that only compiles for it, and changes neither
    what a program computes nor with what it is called.

    Args:
        device: the device; it may be one of a topology that is not there.
    """
    platform = device.client.platform
    return {
        "platform": platform,
        "device": device.device_kind,
        **_own_processor(platform),
        "versions": {name: _version(name) for name in _PACKAGES if name != "libtpu" or platform == "tpu"},
        "options": {name: str(jax.config.values[name]) for name in _MEANING},
        "flags": {name: os.environ.get(name, "") for name in _FLAGS},
        "code": code_digest(),
    }


def _own_processor(platform: str) -> dict[str, object]:
    """Returns what machine code for a CPU depends on: the processor, and as many threads as share its work."""
    if platform != "cpu":
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores}


@cache
def code_digest() -> str:
    """Returns the checksum of the code that decides what is compiled, since nothing is traced to find out."""
    package = Path(__file__).parents[1]
    files = [package / name for name in CODE]
    digest = hashlib.sha256()
    for file in sorted(each for path in files for each in (path.rglob("*.py") if path.is_dir() else [path])):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """Returns the processor's model and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{machine.machine()} {machine.processor()}"
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))
