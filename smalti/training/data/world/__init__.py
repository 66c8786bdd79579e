"""The world of the shipped model: pictograms, composed into pictures with true captions."""

__all__ = [
    "attributes",
    "building",
    "captions",
    "colours",
    "composition",
    "description",
    "encoding",
    "grounds",
    "layout",
    "lookalikes",
    "packages",
    "sprites",
]
