"""Proxies of the environment, which are for other machines: what is asked of this machine is never proxied."""

from collections.abc import Mapping
from typing import Final

__all__ = ["THIS_MACHINE", "spare_this_machine"]

THIS_MACHINE: Final = ("localhost", "127.0.0.1", "::1", "[::1]")
"""The names of this machine; IPv6 in both forms, since libraries differ in which one they compare."""

_LISTS: Final = ("no_proxy", "NO_PROXY")
_GRPC: Final = "no_grpc_proxy"
"""gRPC reads it in place of `no_proxy`."""


def spare_this_machine(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that exempt this machine from the proxies of an environment; none if it has no proxy."""
    if not any(name.lower().endswith("_proxy") and value for name, value in environment.items()):
        return {}
    lists = [*_LISTS, *([_GRPC] if _GRPC in environment else [])]
    # `no_proxy` goes before `NO_PROXY` in most libraries, and what only one of them names holds for both.
    known = [part for name in _LISTS for part in environment.get(name, "").split(",")]
    found = {}
    for name in lists:
        parts = (
            [*known, *environment.get(name, "").split(",")]
            if name in _LISTS
            else environment[name].split(",")
        )
        listed = dict.fromkeys(part.strip() for part in (*parts, *THIS_MACHINE) if part.strip())
        found[name] = "*" if "*" in listed else ",".join(listed)
    return found
