"""Uploads in parts. The gateway keeps them as files of purposes of their own, which are deleted after some time.

An upload is a file with its description; its parts, and how it has ended, are files with its id as their name. So any
process of the web service can go on with it.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal

from pydantic import ValidationError

from smalti.client import AsyncClient
from smalti.errors import InvalidInputError, StoredFileNotFoundError, WrongStateError
from smalti.services.web.openai.files.schema import (
    PartObject,
    UploadObject,
    UploadRequest,
    file_object,
    retention_of,
)
from smalti.v1.file_pb2 import File
from smalti.validation import Strict

UPLOAD: Final = "upload"
PART: Final = "upload.part"
END: Final = "upload.end"
HIDDEN: Final = frozenset({UPLOAD, PART, END})
"""Purposes of files that are no files of users."""
MAX_RECORD_BYTES: Final = 64 * 2**10
"""Size of the description of an upload, at most."""
SECONDS: Final = 3600.0
"""Time for which an upload may be completed, and for which a part is kept."""


class _End(Strict):
    """How an upload has ended."""

    status: Literal["completed", "cancelled"]
    file_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An upload as it is."""

    record: File
    asked: UploadRequest
    end: _End | None

    async def answer(self, client: AsyncClient) -> UploadObject:
        """Returns it as the API has it."""
        file_id = self.end.file_id if self.end else None
        return UploadObject(
            id=self.record.id,
            bytes=self.asked.bytes,
            created_at=self.record.create_time.seconds,
            expires_at=self.record.delete_time.seconds,
            filename=self.asked.filename,
            purpose=self.asked.purpose,
            status=self.end.status if self.end else "pending",
            file=file_object(await client.files.get(file_id)) if file_id else None,
        )


class Uploads:
    """The uploads at a gateway."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._files = client.files

    async def create(self, asked: UploadRequest) -> Upload:
        """Begins an upload."""
        content = asked.model_dump_json().encode()
        record = await self._files.upload(content, name=asked.filename, purpose=UPLOAD, retention=SECONDS)
        return Upload(record=record, asked=asked, end=None)

    async def find(self, upload_id: str) -> Upload:
        """Returns an upload; raises `StoredFileNotFoundError`."""
        missing = StoredFileNotFoundError(upload_id, f"there is no upload {upload_id}, or it has expired")
        record = await self._files.get(upload_id)
        if record.purpose != UPLOAD:
            raise missing
        ended = await anext(aiter(self._files.list(name=upload_id, purpose=END, page_size=1)), None)
        try:
            asked = UploadRequest.model_validate_json(await self._content(record))
            end = _End.model_validate_json(await self._content(ended)) if ended else None
        except ValidationError:  # Files of these purposes can be uploaded by anyone, at the gateway.
            raise missing from None
        return Upload(record=record, asked=asked, end=end)

    async def add(self, upload_id: str, content: BinaryIO) -> PartObject:
        """Adds a part.

        Raises:
            WrongStateError: the upload has ended.
        """
        upload = await self.find(upload_id)
        _check_pending(upload)
        part = await self._files.upload(content, name=upload_id, purpose=PART, retention=SECONDS)
        return PartObject(id=part.id, created_at=part.create_time.seconds, upload_id=upload_id)

    async def complete(self, upload_id: str, part_ids: list[str], md5: str | None) -> Upload:
        """Joins parts to a file. An upload that is completed stays as it is.

        Raises:
            InvalidInputError: a part does not exist, or the parts are not the file that was announced.
            WrongStateError: the upload was cancelled.
        """
        upload = await self.find(upload_id)
        if upload.end is not None and upload.end.status == "completed":
            return upload
        _check_pending(upload)
        if len(set(part_ids)) < len(part_ids):
            raise InvalidInputError("part_ids", "must name each part once")
        known = {each.id: each async for each in self._files.list(name=upload_id, purpose=PART)}
        if missing := [part_id for part_id in part_ids if part_id not in known]:
            # An earlier try may have joined them, and its answer was lost.
            file = await self._joined_before(upload, part_ids) if missing == part_ids else None
            if file is None:
                raise InvalidInputError("part_ids", f"upload {upload_id} has no part {missing[0]!r:.80}")
            return await self._ended(upload, _End(status="completed", file_id=file.id), set(known))
        total = sum(known[part_id].size_bytes for part_id in part_ids)
        if total != upload.asked.bytes:
            raise InvalidInputError(
                "part_ids", f"the parts have {total} bytes together, and the upload has {upload.asked.bytes}"
            )
        if md5 is not None and (found := await self._md5(part_ids)) != md5.lower():
            raise InvalidInputError("md5", f"is not that of the parts, {found}; upload them again")
        file = await self._compose(upload, part_ids)
        return await self._ended(
            upload, _End(status="completed", file_id=file.id), known.keys() - set(part_ids)
        )

    async def cancel(self, upload_id: str) -> Upload:
        """Cancels an upload, and deletes its parts.

        Raises:
            WrongStateError: the upload is completed.
        """
        upload = await self.find(upload_id)
        if upload.end is not None and upload.end.status == "cancelled":
            return upload
        _check_pending(upload)
        parts = {each.id async for each in self._files.list(name=upload_id, purpose=PART)}
        return await self._ended(upload, _End(status="cancelled"), parts)

    async def _compose(self, upload: Upload, part_ids: list[str]) -> File:
        return await self._files.compose(
            part_ids,
            name=upload.asked.filename,
            purpose=upload.asked.purpose,
            retention=retention_of(upload.asked.expires_after),
        )

    async def _joined_before(self, upload: Upload, part_ids: list[str]) -> File | None:
        """Returns the file that an earlier try has made of parts, none of which is there; None if there is none."""
        for part_id in part_ids:
            with suppress(StoredFileNotFoundError):
                await self._files.get(part_id)
                return None  # It is no part of this upload, and must not be joined.
        try:
            file = await self._compose(upload, part_ids)
        except StoredFileNotFoundError:
            return None
        is_same = (file.name, file.size_bytes) == (upload.asked.filename, upload.asked.bytes)
        return file if is_same else None

    async def _ended(self, upload: Upload, end: _End, useless: set[str]) -> Upload:
        content, name = end.model_dump_json().encode(), upload.record.id
        await self._files.upload(content, name=name, purpose=END, retention=SECONDS)
        for part_id in useless:
            with suppress(StoredFileNotFoundError):  # A call at the same time has deleted it.
                await self._files.delete(part_id)
        return Upload(record=upload.record, asked=upload.asked, end=end)

    async def _content(self, file: File) -> bytes:
        """Returns the content of a file of ours; nothing if it is too large to be one."""
        if file.size_bytes > MAX_RECORD_BYTES:
            return b""
        return b"".join([piece async for piece in self._files.read(file)])

    async def _md5(self, part_ids: list[str]) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        for part_id in part_ids:
            async for piece in self._files.read(part_id):
                digest.update(piece)
        return digest.hexdigest()


def _check_pending(upload: Upload) -> None:
    if upload.end is not None:
        raise WrongStateError(f"upload {upload.record.id} is {upload.end.status}; begin another one")
