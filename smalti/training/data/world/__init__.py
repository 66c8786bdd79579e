"""The world of the shipped model: pictograms, composed into pictures with true captions."""

__all__ = [
    "attributes",
    "building",
    "composition",
    "description",
    "encoding",
    "lookalikes",
    "pictograms",
    "sprites",
]
