"""JAX in several processes: every process joins before it asks for a device, and leaves together with the others."""

from typing import Final

import jax

from smalti.devices import find_device
from smalti.network import address_of, is_this_machine
from smalti.services.generator.settings import GroupSettings

LEAVE_SECONDS: Final = 10
"""Time in which all processes must leave; JAX ends one that waits longer for the others."""


def join(group: GroupSettings) -> None:
    """Joins the other processes; from now on `jax.devices()` are those of all of them.

    Raises:
        InvalidInputError: there is no device.
        RuntimeError: the others are not there in time.
    """
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    host = group.leader or ""
    jax.distributed.initialize(
        address_of(host, group.coordinator_port),
        num_processes=group.size,
        process_id=group.index,
        cluster_detection_method="deactivate",
        initialization_timeout=max(1, round(group.wait)),
        shutdown_timeout_seconds=LEAVE_SECONDS,
        coordinator_bind_address=address_of(bind_address(host), group.coordinator_port),
    )
    # The devices of one process are there once all processes have asked for theirs.
    find_device()


def leave() -> None:
    """Leaves, and waits until the others do."""
    jax.distributed.shutdown()


def bind_address(leader: str) -> str:
    """Returns the address on which the leader listens: every one, unless only this machine reaches it."""
    if not is_this_machine(leader):
        return "::"
    return "127.0.0.1" if leader == "localhost" else leader
