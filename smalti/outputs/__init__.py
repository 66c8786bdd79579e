"""Where commands write: checked before the work, apart from inputs, locked, and left as it was on failure."""

from smalti.outputs.apart import Inputs
from smalti.outputs.folder import OpenFolder, check_file, check_folder, open_folder, whole_folder
from smalti.outputs.mark import MARK_FILE

__all__ = [
    "MARK_FILE",
    "Inputs",
    "OpenFolder",
    "check_file",
    "check_folder",
    "open_folder",
    "whole_folder",
]
