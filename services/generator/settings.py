"""The settings of a generator that runs in several processes; each is read from the variable `SMALTI_GROUP_<NAME>`."""

import os
from typing import Annotated, Any, Final

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from smalti.errors import InvalidInputError
from smalti.network import PLAINTEXT, is_this_machine
from smalti.settings import PREFIX, EnvironmentSettings, Host, Seconds, read_settings, settings

GROUP_PREFIX: Final = f"{PREFIX}GROUP_"
MIN_SECRET: Final = 16
"""Fewest characters of a group's secret."""

LEADER_WORKER_SET: Final = {
    "size": "LWS_GROUP_SIZE",
    "index": "LWS_WORKER_INDEX",
    "leader": "LWS_LEADER_ADDRESS",
}
"""The variables that a LeaderWorkerSet of Kubernetes sets in its pods, by the field that each gives a default."""

Port = Annotated[int, Field(ge=1, le=65535)]


class GroupSettings(EnvironmentSettings):
    """Settings of a group: several processes, each on its own host, that run one generator."""

    model_config = SettingsConfigDict(env_prefix=GROUP_PREFIX)

    size: Annotated[int, Field(ge=1, le=4096)] = 1
    """Number of processes that run one generator together; 1 for a generator that runs alone. In a LeaderWorkerSet,
    `LWS_GROUP_SIZE` is the default."""
    index: Annotated[int, Field(ge=0, le=4095)] = 0
    """Number of this process in its group, from 0 on; 0 is the leader, which takes calls and messages. In a
    LeaderWorkerSet, `LWS_WORKER_INDEX` is the default."""
    leader: Host | None = None
    """Host of the leader, as the other processes reach it. In a LeaderWorkerSet, `LWS_LEADER_ADDRESS` is the
    default."""
    port: Port = 8475
    """Port at which the leader commands the others."""
    coordinator_port: Port = 8476
    """Port of the leader at which JAX's own coordinator listens."""
    secret: SecretStr | None = None
    """Secret that all processes of the group know, of at least 16 characters."""
    wait: Seconds = 300.0
    """Time in seconds within which all processes of the group must have come."""
    silence: Seconds = 30.0
    """Time in seconds without a sign of life after which a process of the group counts as gone."""
    plaintext: bool = False
    """Allow the processes of a group to be on several machines: they talk in plaintext, as JAX does."""

    @model_validator(mode="before")
    @classmethod
    def _read_leader_worker_set(cls, values: dict[str, Any]) -> dict[str, Any]:
        found = {field: os.environ.get(name) for field, name in LEADER_WORKER_SET.items()}
        return {**{field: value for field, value in found.items() if value}, **values}


def group_settings() -> GroupSettings:
    """Reads the settings from the environment.

    Raises:
        InvalidInputError: a setting is invalid, or one that a group needs is missing; names the variable.
    """
    group = read_settings(GroupSettings)
    if group.index >= group.size:
        raise InvalidInputError(
            f"{GROUP_PREFIX}INDEX", f"{group.index} must be below {GROUP_PREFIX}SIZE, which is {group.size}"
        )
    if group.size == 1:
        return group
    if group.leader is None:
        raise InvalidInputError(f"{GROUP_PREFIX}LEADER", "is not set; a group needs the host of its leader")
    if group.secret is None or len(group.secret.get_secret_value()) < MIN_SECRET:
        raise InvalidInputError(
            f"{GROUP_PREFIX}SECRET",
            f"must have at least {MIN_SECRET} characters, the same in every process of the group",
        )
    if group.port == group.coordinator_port:
        raise InvalidInputError(f"{GROUP_PREFIX}PORT", f"must not be {GROUP_PREFIX}COORDINATOR_PORT")
    if not (group.plaintext or settings().plaintext or is_this_machine(group.leader)):
        raise InvalidInputError(
            f"{GROUP_PREFIX}PLAINTEXT",
            f"is not set, and a group talks in plaintext with {group.leader}, as JAX does; set it to 1, "
            f"or {PLAINTEXT}=1, if nobody else can reach or read that network",
        )
    return group
