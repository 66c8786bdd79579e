"""Which models can be drawn now: their revisions, the workers that have said hello, and which revision a job gets."""

from smalti.services.gateway.models.card import ModelCard
from smalti.services.gateway.models.catalogue import HELLO_SECONDS, Catalogue, revision_of
from smalti.services.gateway.models.fleet import Fleet, RevisionState
from smalti.services.gateway.models.hellos import HelloBuffer
from smalti.services.gateway.models.listing import ListedRevision, list_revisions, retire

__all__ = [
    "HELLO_SECONDS",
    "Catalogue",
    "Fleet",
    "HelloBuffer",
    "ListedRevision",
    "ModelCard",
    "RevisionState",
    "list_revisions",
    "retire",
    "revision_of",
]
