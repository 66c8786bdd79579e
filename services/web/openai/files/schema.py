"""The bodies of the Files and the Uploads API."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from smalti.services.web.openai.pages import Listed, Page
from smalti.v1.file_pb2 import FILE_STATE_READY, File
from smalti.validation import Strict

Purpose = Literal["batch", "assistants", "fine-tune", "vision", "user_data", "evals"]
Identifier = Annotated[str, Field(min_length=1, max_length=64)]


class ExpiresAfter(Strict):
    """When a file is deleted."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]
    """Seconds after it was created, from an hour to 30 days."""


class FileForm(Strict):
    """A file to upload: a form with the file `file` beside these fields."""

    purpose: Purpose
    """What the file is for. `batch` is for the requests of a batch."""
    expires_after: ExpiresAfter | None = None
    """When it is deleted; 30 days after it was created if it is missing."""


class UploadRequest(Strict):
    """A file that is uploaded in parts."""

    bytes: Annotated[int, Field(ge=0)]
    """The size of the file; the parts must have as many bytes together."""
    filename: Annotated[str, Field(min_length=1, max_length=255)]
    mime_type: Annotated[str, Field(max_length=255)]
    """Without effect."""
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CompleteRequest(Strict):
    """The parts of a file, in order."""

    part_ids: Annotated[list[Identifier], Field(min_length=1, max_length=1000)]
    md5: str | None = None
    """The MD5 of the file in hexadecimal, which is then compared."""


class FileObject(Listed):
    """A file."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["uploaded", "processed"]
    """`uploaded` while the content is still arriving."""


class FileList(Page[FileObject]):
    """A page of files."""


class FileDeleted(BaseModel):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class UploadObject(BaseModel):
    """A file that is uploaded in parts."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled"]
    file: FileObject | None = None
    """The file, once the upload is completed."""


class PartObject(BaseModel):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str


def retention_of(expires: ExpiresAfter | None) -> float | None:
    """Returns the time in seconds for which a file is kept; None for the gateway's default."""
    return None if expires is None else float(expires.seconds)


def file_object(file: File) -> FileObject:
    """Returns a file as the API has it."""
    return FileObject(
        id=file.id,
        bytes=file.size_bytes,
        created_at=file.create_time.seconds,
        expires_at=file.delete_time.seconds,
        filename=file.name,
        purpose=file.purpose,
        status="processed" if file.state == FILE_STATE_READY else "uploaded",
    )
