"""Files that clients bring, such as the prompts of a batch, and that the gateway makes for them."""

from smalti.services.gateway.files.contents import FileContents, Incoming
from smalti.services.gateway.files.repository import FileFilter, FileRepository, NewFile
from smalti.services.gateway.files.storing import FILES_AT_A_TIME, register_file, remove_due

__all__ = [
    "FILES_AT_A_TIME",
    "FileContents",
    "FileFilter",
    "FileRepository",
    "Incoming",
    "NewFile",
    "register_file",
    "remove_due",
]
