"""An object store behind the S3 protocol, such as SeaweedFS, MinIO, Ceph or AWS, through the client of MinIO."""

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Final, TypeVar
from xml.etree.ElementTree import ParseError

import urllib3
from minio.commonconfig import ENABLED, CopySource, Filter
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from smalti.errors import DamagedObjectError, MissingObjectError, SmaltiError, StoreUnavailableError
from smalti.files import atomic_path
from smalti.storage.answers import BusyStoreError, CarefulPool, clock_skew, may_heal
from smalti.storage.keys import JOBS, ObjectRef, check_key
from smalti.storage.reading import open_reader
from smalti.storage.s3_client import connect
from smalti.storage.store import ObjectInfo, check_digest, digest, digest_of_file, using_file, verified

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

CHECKSUM: Final = "x-amz-meta-sha256"
RULE: Final = "smalti-jobs"
CONNECTIONS: Final = 32
"""Idle connections that are kept."""
STREAM_BYTES: Final = 2**20
"""Bytes of an object that are held in memory when it is written to a file."""
PAGE: Final = 1000
"""Objects that S3 lists in one response."""
DELETE_BATCH: Final = 100
"""Objects that one call deletes. S3 allows 1000, but such a call may take long."""

_MISSING = {"NoSuchKey", "ResourceNotFound"}


@dataclass(frozen=True)
class S3Address:
    """The address of the store, and the keys to it."""

    endpoint: str
    """`http://host:port` or `https://host:port`."""
    bucket: str
    access_key: str
    secret_key: str
    session_token: str | None = None
    region: str = "us-east-1"
    public_endpoint: str | None = None
    """The endpoint for clients, if it differs; presigned URLs are made for it."""


class S3Store:
    """Keeps objects in one bucket, with the checksum in the metadata."""

    def __init__(
        self, address: S3Address, *, timeout: float = 10.0, tries: int = 3, ca: str | None = None
    ) -> None:
        """Connects at the first call, and creates a missing bucket.

        Args:
            address: the address of the store.
            timeout: seconds for connecting, and for each read of a response.
            tries: attempts at a call that fails for a transient reason.
            ca: PEM file of the authorities of the store's certificate; None uses those of the system.
        """
        self._bucket = address.bucket
        # Retried here, since urllib3 does not retry a body that breaks off.
        http = CarefulPool(
            timeout=urllib3.Timeout(connect=timeout, read=timeout),
            retries=False,
            maxsize=CONNECTIONS,
            cert_reqs="CERT_REQUIRED",
            ca_certs=ca,
        )
        self._client, self._signer = (
            connect(
                endpoint,
                http,
                access_key=address.access_key,
                secret_key=address.secret_key,
                session_token=address.session_token,
                region=address.region,
            )
            for endpoint in (address.endpoint, address.public_endpoint or address.endpoint)
        )
        self._retrying = Retrying(
            stop=stop_after_attempt(tries),
            wait=wait_random_exponential(multiplier=0.1, max=2.0),
            retry=retry_if_exception(_is_transient),
            reraise=True,
        )
        self._has_bucket = False

    def put(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> ObjectRef:  # noqa: D102
        ref = ObjectRef(key=check_key(key), sha256=digest(content))

        def write() -> None:
            self._make_bucket()
            self._client.put_object(
                self._bucket,
                key,
                io.BytesIO(content),
                len(content),
                content_type=content_type,
                metadata={CHECKSUM: ref.sha256},
            )

        self._try(key, write)
        return ref

    def create(self, key: str, content: bytes, *, content_type: str = "application/octet-stream") -> bool:  # noqa: D102
        headers = {"Content-Type": content_type, CHECKSUM: digest(content)}

        def write() -> bool:
            self._make_bucket()
            try:
                self._client.put(self._bucket, check_key(key), content, headers | {"If-None-Match": "*"})
            except S3Error as error:
                if error.code == "PreconditionFailed":
                    return False
                if error.code != "NotImplemented":
                    raise
                self._client.put(self._bucket, key, content, headers)
            return True

        return self._try(key, write)

    def put_file(  # noqa: D102
        self, key: str, path: Path, *, content_type: str = "application/octet-stream"
    ) -> ObjectRef:
        ref = ObjectRef(key=check_key(key), sha256=digest_of_file(path))
        headers = {"Content-Type": content_type, CHECKSUM: ref.sha256}

        def write() -> None:
            self._make_bucket()
            self._client.put_file(self._bucket, key, path, headers)

        self._try(key, write)
        return ref

    def copy(self, source: ObjectRef, key: str) -> ObjectRef:  # noqa: D102
        check_key(key)
        content = CopySource(self._bucket, source.key)
        self._try(source.key, lambda: self._client.copy_object(self._bucket, key, content))
        return ObjectRef(key=key, sha256=source.sha256)

    def get(self, key: str, *, sha256: str | None = None) -> bytes:  # noqa: D102
        check_key(key)

        def read() -> bytes:
            with self._client.reading(self._bucket, key) as response:
                return verified(key, response.read(), response.headers.get(CHECKSUM), sha256)

        return self._try(key, read)

    def get_file(self, key: str, path: Path, *, sha256: str | None = None) -> None:  # noqa: D102
        check_key(key)

        def read() -> None:
            with (
                self._client.reading(self._bucket, key) as response,
                using_file(path),
                atomic_path(path) as temporary,
                temporary.open("wb") as file,
            ):
                hashed = hashlib.sha256()
                for part in response.stream(STREAM_BYTES):
                    hashed.update(part)
                    file.write(part)
                check_digest(key, hashed.hexdigest(), file.tell(), response.headers.get(CHECKSUM), sha256)

        self._try(key, read)

    def read(self, key: str, start: int, length: int) -> bytes:  # noqa: D102
        check_key(key)

        def read() -> bytes:
            try:
                with self._client.reading(self._bucket, key, start, length) as response:
                    return response.read()
            except S3Error as error:
                if error.code == "InvalidRange":
                    return b""
                raise

        return self._try(key, read)

    def open_object(self, key: str) -> BinaryIO:  # noqa: D102
        return open_reader(self, key)

    def stat(self, key: str) -> ObjectInfo | None:  # noqa: D102
        check_key(key)

        def look() -> ObjectInfo:
            found = self._client.stat_object(self._bucket, key)
            checksum = (found.metadata or {}).get(CHECKSUM)
            return ObjectInfo(key, found.size or 0, found.last_modified or datetime.now(UTC), checksum)

        try:
            return self._try(key, look)
        except MissingObjectError:
            return None

    def delete(self, *keys: str) -> None:  # noqa: D102
        for key in keys:
            check_key(key)
        for first in range(0, len(keys), DELETE_BATCH):
            self._try("", partial(self._delete, keys[first : first + DELETE_BATCH]))

    def _delete(self, keys: tuple[str, ...]) -> None:
        if len(keys) == 1:
            self._client.remove_object(self._bucket, keys[0])
            return
        errors = list(self._client.remove_objects(self._bucket, (DeleteObject(key) for key in keys)))
        if errors:
            raise StoreUnavailableError(f"{len(errors)} objects were not deleted: {errors[0].message}")

    def objects(self, prefix: str = "", *, after: str = "") -> Iterator[ObjectInfo]:  # noqa: D102
        while True:
            # One page at a time, so that a failing page can be retried.
            page = self._try("", partial(self._page, prefix, after))
            yield from page
            if len(page) < PAGE:
                return
            after = page[-1].key

    def _page(self, prefix: str, after: str) -> list[ObjectInfo]:
        objects = self._client.list_objects(
            self._bucket, prefix=prefix, recursive=True, start_after=after or None
        )
        page: list[ObjectInfo] = []
        try:
            for found in objects:
                if not found.is_dir and found.object_name:
                    modified = found.last_modified or datetime.now(UTC)
                    page.append(ObjectInfo(found.object_name, found.size or 0, modified))
                if len(page) == PAGE:
                    break
        except ValueError as error:
            raise StoreUnavailableError(f"the object store does not list as S3 does: {error}") from error
        return page

    def presigned_url(self, key: str, *, seconds: float) -> str:
        """Returns a signed URL; S3 limits its lifetime to a week."""
        return self._signer.presigned_get_object(self._bucket, check_key(key), expires=_lifetime(seconds))

    def presigned_upload(self, key: str, *, seconds: float) -> str:
        """Returns a signed URL; S3 limits its lifetime to a week."""
        self._try("", self._make_bucket)
        return self._signer.presigned_put_object(self._bucket, check_key(key), expires=_lifetime(seconds))

    def expire_after(self, days: int) -> bool:
        """Sets our lifecycle rule of the bucket, unless it is there already.

        S3 can only replace all rules at once, and the client loses what it does not know of a rule. So a bucket that
        has rules of others is left as it is.
        """

        def configure() -> bool:
            self._make_bucket()
            # None stands for rules that the client cannot read, so not ours.
            rules: list[Rule | None] = [None]
            with suppress(ValueError):
                present = self._client.get_bucket_lifecycle(self._bucket)
                rules = list(present.rules) if present else []
            ours = [rule for rule in rules if rule and rule.rule_id == RULE]
            if None not in rules and [_days(rule) for rule in ours] == ([days] if days else []):
                return True
            if len(rules) > len(ours):
                change = (
                    f"add the rule {RULE}: {JOBS} expires after {days} days"
                    if days
                    else f"remove the rule {RULE}"
                )
                logger.warning(
                    "the bucket %s has lifecycle rules of others, so none is changed; by hand, %s",
                    self._bucket,
                    change,
                )
                return False
            if days:
                jobs = Filter(prefix=JOBS)
                rule = Rule(ENABLED, rule_filter=jobs, rule_id=RULE, expiration=Expiration(days=days))
                self._client.set_bucket_lifecycle(self._bucket, LifecycleConfig([rule]))
            else:
                self._client.delete_bucket_lifecycle(self._bucket)
            return True

        try:
            return self._try("", configure)
        except StoreUnavailableError as error:
            if error.transient and not _is_unsupported(error.__cause__):
                raise
            logger.warning("the object store does not support lifecycle rules: %s", error)
            return False

    def check(self) -> None:  # noqa: D102
        self._has_bucket = False
        self._try("", self._make_bucket)
        self.put("writable", b"yes")  # Not empty: an empty object would succeed on a full disk.

    def _make_bucket(self) -> None:
        if self._has_bucket:
            return
        if not self._bucket_exists():
            try:
                self._client.make_bucket(self._bucket)
            except S3Error as error:
                # Another service has just created it.
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise
        self._has_bucket = True

    def _bucket_exists(self) -> bool:
        try:
            return self._client.bucket_exists(self._bucket)
        except S3Error as error:
            if error.response.status == HTTPStatus.FORBIDDEN:
                # This answer has no body, so the call that follows says why, if that fails too.
                return True
            raise

    def _try(self, key: str, action: Callable[[], Result]) -> Result:
        """Calls with retries, and translates errors into `StorageError`."""
        return self._retrying(lambda: self._once(key, action))

    def _once(self, key: str, action: Callable[[], Result]) -> Result:
        try:
            return action()
        except SmaltiError:
            raise
        except S3Error as error:
            if error.code in _MISSING:
                raise MissingObjectError(key) from None
            if error.code == "NoSuchBucket":
                self._has_bucket = False
                if key:
                    raise MissingObjectError(key) from None
            skew = clock_skew(error.response.headers)
            problem = f"{error.code}: {error.message}" + (f"; {skew}" if skew else "")
            raise StoreUnavailableError(f"object store: {problem}", transient=may_heal(error)) from error
        except BusyStoreError as error:
            raise StoreUnavailableError(f"object store: {error}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise StoreUnavailableError(f"the object store does not answer: {error}") from error
        except (ParseError, UnicodeError) as error:
            raise StoreUnavailableError(f"the object store does not answer as S3 does: {error}") from error
        except InvalidResponseError as error:
            text = str(error).partition(", Body")[0]
            raise StoreUnavailableError(f"object store: {text}", transient=False) from error
        except (MinioException, ValueError) as error:  # The client refuses some names of buckets itself.
            raise StoreUnavailableError(f"object store: {error}", transient=False) from error


def _lifetime(seconds: float) -> timedelta:
    return timedelta(seconds=max(1, min(int(seconds), 7 * 24 * 3600)))


def _days(rule: Rule) -> int | None:
    """Returns after how many days a rule lets objects of jobs expire; None if it is another rule."""
    if rule.status != ENABLED or rule.rule_filter is None or rule.rule_filter.prefix != JOBS:
        return None
    return rule.expiration.days if rule.expiration else None


def _is_transient(error: BaseException) -> bool:
    # An object that was damaged in transit is intact when it is read again.
    return isinstance(error, DamagedObjectError) or (
        isinstance(error, StoreUnavailableError) and error.transient
    )


def _is_unsupported(error: BaseException | None) -> bool:
    return isinstance(error, S3Error) and error.response.status == HTTPStatus.NOT_IMPLEMENTED
