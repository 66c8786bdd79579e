"""What all processes of a group must have in common, since each of them makes the same calls to JAX."""

from collections.abc import Mapping
from importlib.metadata import version

from smalti import __version__
from smalti.compilation import code_digest
from smalti.registry.spec import ModelSpec
from smalti.service import ServiceSettings
from smalti.services.generator.settings import GROUP_PREFIX, GroupSettings
from smalti.settings import PREFIX, settings


def common_values(spec: ModelSpec, service: ServiceSettings, group: GroupSettings) -> dict[str, str]:
    """Returns what decides on the calls to JAX and their arguments' shapes, by the name that a user knows."""
    generator = {
        f"{PREFIX}{name.upper()}": str(value)
        for name, value in settings().model_dump().items()
        if name.startswith("generator_")
    }
    return {
        "the version of Smalti": f"{__version__}, code {code_digest()[:12]}",
        "the version of JAX": f"{version('jax')} with jaxlib {version('jaxlib')}",
        f"{PREFIX}MODEL": f"{spec.folder.name}, revision {spec.folder.revision}",
        "SMALTI_SERVICE_SLOTS": str(service.slots),
        f"{GROUP_PREFIX}SIZE": str(group.size),
        **generator,
    }


def difference(leaders: Mapping[str, str], followers: Mapping[str, str]) -> str:
    """Returns the first thing that differs, in one line; empty if nothing does."""
    for name in [*leaders, *followers]:
        ours, theirs = leaders.get(name, "unknown"), followers.get(name, "unknown")
        if ours != theirs:
            return f"{name} is {theirs} here, but {ours} in the leader; start both with the same"
    return ""
