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
    # `no_proxy` goes before `NO_PROXY` in most libraries, and what only one of them names holds for both.
    lists = dict.fromkeys(_LISTS, ",".join(environment.get(name, "") for name in _LISTS))
    if _GRPC in environment:
        lists[_GRPC] = environment[_GRPC]
    found = {}
    for name, text in lists.items():
        listed = dict.fromkeys(part.strip() for part in (*text.split(","), *THIS_MACHINE) if part.strip())
        found[name] = "*" if "*" in listed else ",".join(listed)
    return found
