"""A request that is sent again finds the job of the first time.

With `Idempotency-Key`, the id of the gateway's request follows from the key. Without one, a client that says that it
retries (`x-stainless-retry-count` above 0) gets the job of the same request that no client waits for: each job has a
label with the hash of its request.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Unpack

from smalti.client import AsyncClient, GenerateOptions, has_ended
from smalti.errors import InvalidInputError
from smalti.services.web.gateway import current_caller
from smalti.services.web.jobs.attendance import Attendance
from smalti.v1.job_pb2 import JOB_STATE_CANCELLED, JOB_STATE_SUCCEEDED, Job

KEY: Final = "idempotency-key"
RETRIES: Final = "x-stainless-retry-count"
LABEL: Final = "web/request"
"""The label with the hash of a request."""
MAX_KEY_LENGTH: Final = 255
MAX_JOBS: Final = 20
"""Number of jobs of equal requests that are looked at."""
OPEN_SECONDS: Final = 3600.0
"""Age of an open job up to which a retry may mean it."""
ENDED_SECONDS: Final = 30.0
"""Time after its end in which a retry may mean a job. Clients retry within a few seconds."""
MAX_GENERATIONS: Final = 5
"""Number of times that a key may be used again after its job was cancelled."""


class Repeats:
    """Creates jobs, once for each request."""

    def __init__(
        self, client: AsyncClient, attendance: Attendance, created: Callable[[], None] | None = None
    ) -> None:
        """Works with the jobs of a gateway.

        Args:
            client: creates the jobs.
            attendance: the clients that wait for them.
            created: called after a job was created.
        """
        self._client = client
        self._attendance = attendance
        self._created = created

    async def create(
        self, headers: Mapping[str, str], prompt: str, max_labels: int, **options: Unpack[GenerateOptions]
    ) -> Job:
        """Creates a job, or returns that of the same request.

        Args:
            headers: the headers of the request, in lower case.
            prompt: what to draw.
            max_labels: number of labels that a job may have.
            **options: the other options of the job.

        Raises:
            RequestIdReusedError: the key belongs to another request.
            SmaltiError: the request was refused, or the gateway does not answer.
        """
        job = await self._create(headers, prompt, max_labels, options)
        if self._created:
            self._created()
        return job

    async def _create(
        self, headers: Mapping[str, str], prompt: str, max_labels: int, options: GenerateOptions
    ) -> Job:
        if options.get("request_id") is not None:
            return await self._client.create(prompt, **options)
        if (key := headers.get(KEY)) is not None:
            return await self._create_once(_checked(key), prompt, options)
        caller = current_caller.get()
        label = _digest(caller.authorization, caller.network, prompt, _canonical(options))[:32]
        labels = dict(options.get("labels") or {})
        if len(labels) < max_labels:
            labels[LABEL] = label
        options["labels"] = labels
        if is_retry(headers) and (found := await self._find(label, seeded=options.get("seed") is not None)):
            return found
        return await self._client.create(prompt, **options)

    async def _create_once(self, key: str, prompt: str, options: GenerateOptions) -> Job:
        """Creates the job of a key. A job that was cancelled, because its client went away, is made again."""
        for generation in range(MAX_GENERATIONS):
            options["request_id"] = _request_id(key, generation)
            job = await self._client.create(prompt, **options)
            if job.state != JOB_STATE_CANCELLED:
                return job
        return job

    async def _find(self, label: str, *, seeded: bool) -> Job | None:
        """Returns the newest job of an equal request whose pictures nobody has or awaits.

        Args:
            label: the hash of the request.
            seeded: whether the request has a seed. Then the pictures are the same, and any job will do.
        """
        now = datetime.now(UTC)
        page = await self._client.page(
            labels={LABEL: label}, created_since=now - timedelta(seconds=OPEN_SECONDS), page_size=MAX_JOBS
        )
        left = [job for job in page.jobs if self._attendance.is_left(job.id)]
        others = [job for job in page.jobs if seeded or not self._attendance.is_taken(job.id)]
        for job in (*left, *others):
            if not has_ended(job):
                return job
            age = now - job.end_time.ToDatetime(UTC)
            if job.state == JOB_STATE_SUCCEEDED and age < timedelta(seconds=ENDED_SECONDS):
                return await self._client.get(job.id)
        return None


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """Returns the id of the gateway's request that follows from the key of a request; None if it has no key.

    Raises:
        InvalidInputError: the key cannot be used.
    """
    key = headers.get(KEY)
    return None if key is None else _request_id(_checked(key), 0)


def _request_id(key: str, generation: int) -> str:
    digest = bytes.fromhex(_digest(current_caller.get().authorization, key, str(generation)))
    return str(uuid.UUID(bytes=digest[:16], version=4))


def _checked(key: str) -> str:
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise InvalidInputError(KEY, f"must have 1 to {MAX_KEY_LENGTH} characters, got {len(key)}")
    return key


def is_retry(headers: Mapping[str, str]) -> bool:
    """Returns whether a client says that it has sent a request before."""
    count = headers.get(RETRIES, "")
    return count.isascii() and count.isdigit() and int(count[:9]) > 0


def _canonical(options: Mapping[str, Any]) -> str:
    return json.dumps(options, sort_keys=True, default=_short)


def _short(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)


def _digest(*parts: str) -> str:
    return hashlib.sha256(
        "\0".join(f"{len(part)}:{part}" for part in parts).encode(errors="surrogatepass")
    ).hexdigest()
