"""Opening an input in any format."""

from typing import BinaryIO

from smalti.batches.reading.columns import Columns
from smalti.batches.reading.parquet import ParquetReader
from smalti.batches.reading.rows import InputFormat, RowReader
from smalti.batches.reading.tables import CsvReader
from smalti.batches.reading.text import JsonReader, TextReader


def open_rows(file: BinaryIO, input_format: InputFormat, columns: Columns) -> RowReader:
    """Returns the reader of an input, for any format but that of OpenAI.

    Args:
        file: the input at its beginning; for Parquet it must be seekable.
        input_format: its format.
        columns: the columns; not used for text.

    Raises:
        InvalidInputError: the input cannot be read; names a missing or unknown column.
    """
    match input_format:
        case InputFormat.TEXT:
            return TextReader(file)
        case InputFormat.JSONL:
            return JsonReader(file, columns)
        case InputFormat.CSV:
            return CsvReader(file, columns)
        case InputFormat.PARQUET:
            return ParquetReader(file, columns)
        case InputFormat.OPENAI:
            raise ValueError("the lines of OpenAI's Batch API have a reader of their own")
