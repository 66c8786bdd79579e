"""The gateway as the web service calls it: on whose behalf, and which models it offers."""

from smalti.services.web.gateway.caller import (
    Caller,
    StreamMetadata,
    UnaryMetadata,
    UploadMetadata,
    calling_with,
    current_caller,
)
from smalti.services.web.gateway.catalogue import Catalogue

__all__ = [
    "Caller",
    "Catalogue",
    "StreamMetadata",
    "UnaryMetadata",
    "UploadMetadata",
    "calling_with",
    "current_caller",
]
