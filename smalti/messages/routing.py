"""What version 3 has added to tasks: where the work goes, and what it is done with."""

from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from smalti.messages.envelope import Extensible, ShortText
from smalti.messages.queues import RouteKey, Stage
from smalti.storage import Sha256

ROUTES_SINCE: Final = 3
"""The first version in which tasks have routes, and workers say hello."""
MAX_ADAPTERS = 8
"""Adapters of one task."""


def _without_unknown_stages(routes: Any) -> Any:
    """Leaves out stages that a later release has added: their work goes to the queues of all workers."""
    if not isinstance(routes, dict):
        return routes
    return {stage: key for stage, key in routes.items() if stage in list(Stage)}


Routes = Annotated[dict[Stage, RouteKey], BeforeValidator(_without_unknown_stages)]
"""Keys of queues by stage."""


class Adapter(Extensible):
    """A small change of the generator's weights."""

    name: ShortText
    sha256: Sha256
    """SHA-256 of its file."""
    weight: float = 1.0
    """How strongly it is applied."""
