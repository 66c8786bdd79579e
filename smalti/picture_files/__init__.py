"""Picture files from outside: their headers are checked here, and a process with limits decodes them."""

from smalti.picture_files.header import MAX_FILE_BYTES, MAX_SIDE, check_header
from smalti.picture_files.reader import Decoded, PictureReader, reader

__all__ = ["MAX_FILE_BYTES", "MAX_SIDE", "Decoded", "PictureReader", "check_header", "reader"]
