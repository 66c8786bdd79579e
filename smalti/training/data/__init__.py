"""Data sets of pictures and captions: imported, cleaned, compared, split and encoded."""

__all__ = [
    "configuration",
    "encoding",
    "importing",
    "near_duplicates",
    "pictures",
    "report",
    "shards",
    "splits",
    "world",
]
