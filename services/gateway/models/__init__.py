"""Which models can be drawn now: their revisions, the workers that have said hello, and which revision a job gets."""

from smalti.services.gateway.models.card import ModelCard
from smalti.services.gateway.models.catalogue import ROUTES_SINCE, Catalogue, revision_of
from smalti.services.gateway.models.fleet import Fleet, RevisionState
from smalti.services.gateway.models.hellos import HelloBuffer

__all__ = ["ROUTES_SINCE", "Catalogue", "Fleet", "HelloBuffer", "ModelCard", "RevisionState", "revision_of"]
