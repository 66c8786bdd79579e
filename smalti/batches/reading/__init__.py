"""Reading the input of a batch as a stream of rows, in every format."""

from smalti.batches.reading.columns import COLUMNS, SAMPLING_COLUMNS, Columns
from smalti.batches.reading.lines import MAX_LINE, Lines
from smalti.batches.reading.opening import open_rows
from smalti.batches.reading.rows import (
    INPUT,
    EditSource,
    InputFormat,
    InputRow,
    RowProblem,
    RowReader,
    format_of,
    message_of,
)
from smalti.batches.reading.text import json_type, read_object

__all__ = [
    "COLUMNS",
    "INPUT",
    "MAX_LINE",
    "SAMPLING_COLUMNS",
    "Columns",
    "EditSource",
    "InputFormat",
    "InputRow",
    "Lines",
    "RowProblem",
    "RowReader",
    "format_of",
    "json_type",
    "message_of",
    "open_rows",
    "read_object",
]
