"""MinIO's client, with writes that take headers, and that read files part by part."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.datatypes import Part
from minio.xml import Element, SubElement, getbytes

PART_BYTES: Final = 16 * 2**20
"""Bytes of a file that are held in memory, and sent in one call; a smaller file is sent in one piece."""
MAX_PARTS: Final = 10_000
"""Parts that S3 allows."""


class S3Client(Minio):
    """The client; `put_object` knows no conditions, and takes an upload that S3 could not complete for a good one."""

    @contextmanager
    def reading(
        self, bucket: str, key: str, start: int = 0, length: int = 0
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """Yields the answer with an object, or with a part of it; `length` 0 is the rest."""
        response = self.get_object(bucket, key, offset=start, length=length)
        try:
            yield response
        except BaseException:
            response.close()  # The rest of this response must not be read as the next one.
            raise
        response.release_conn()

    def put(self, bucket: str, key: str, content: bytes, headers: dict[str, str]) -> None:
        """Writes an object with exactly these headers."""
        self._put_object(bucket, key, content, dict(headers))

    def put_file(self, bucket: str, key: str, path: Path, headers: dict[str, str]) -> None:
        """Writes an object with these headers from a file, in parts if it is large."""
        with path.open("rb") as file:
            size = path.stat().st_size
            if size <= PART_BYTES:
                self.put(bucket, key, file.read(), headers)
                return
            upload = self._create_multipart_upload(bucket, key, dict(headers))
            try:
                parts = self._put_parts(bucket, key, upload, file, max(PART_BYTES, -(-size // MAX_PARTS)))
                self._complete(bucket, key, upload, parts)
            except BaseException:
                self._abort_multipart_upload(bucket, key, upload)
                raise

    def _put_parts(self, bucket: str, key: str, upload: str, file: BinaryIO, size: int) -> list[Part]:
        parts: list[Part] = []
        while content := file.read(size):
            number = len(parts) + 1
            parts.append(Part(number, self._upload_part(bucket, key, content, None, upload, number)))
        return parts

    def _complete(self, bucket: str, key: str, upload: str, parts: list[Part]) -> None:
        element = Element("CompleteMultipartUpload")
        for part in parts:
            tag = SubElement(element, "Part")
            SubElement(tag, "PartNumber", str(part.part_number))
            SubElement(tag, "ETag", f'"{part.etag}"')
        answer = self._execute(
            "POST",
            bucket,
            key,
            body=getbytes(element),
            headers={"Content-Type": "application/xml"},
            query_params={"uploadId": upload},
        )
        # S3 answers at once, and may find out later that it failed: then the body says so.
        if b"CompleteMultipartUploadResult" not in answer.data:
            raise urllib3.exceptions.ProtocolError(f"the upload of {key} was not completed")


def connect(
    endpoint: str,
    http: urllib3.PoolManager,
    *,
    access_key: str,
    secret_key: str,
    session_token: str | None,
    region: str,
) -> S3Client:
    """Returns a client of an endpoint, which makes its calls with the given connections."""
    parts = urlsplit(endpoint)
    return S3Client(
        parts.netloc,
        access_key=access_key,
        secret_key=secret_key,
        session_token=session_token,
        secure=parts.scheme == "https",
        region=region,  # Otherwise the client would ask the server before it signs a URL.
        http_client=http,
    )
