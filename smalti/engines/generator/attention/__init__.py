"""Attention of the generator, with a layout of keys and values for each kind of device."""

from smalti.engines.generator.attention.heads_first import HeadsFirst
from smalti.engines.generator.attention.layout import (
    Blocks,
    CacheLayout,
    KeysValues,
    combine,
    empty,
    keep,
    put_into_blocks,
)
from smalti.engines.generator.attention.rows_first import RowsFirst
from smalti.engines.generator.attention.tiles import Plan

__all__ = [
    "Blocks",
    "CacheLayout",
    "HeadsFirst",
    "KeysValues",
    "Plan",
    "RowsFirst",
    "combine",
    "empty",
    "keep",
    "put_into_blocks",
]
