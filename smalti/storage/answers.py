"""Answers of an S3 store that are no result: by their status, a store that is busy is told from one that refuses."""

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

import urllib3
from minio.error import S3Error
from urllib3.response import BaseHTTPResponse

BUSY: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
"""Statuses below 500 after which the same call may succeed."""
_HEALING: Final = re.compile(
    "Aborted|BadDigest|Busy|ConditionalRequestConflict|IncompleteBody|QuotaExceeded|SlowDown|Skewed|Throttl|Timeout|TooMany"
)
"""Words in an error's code after which the same call may succeed although its status, below 500, does not say so."""
MAX_SKEW_SECONDS: Final = 300.0
"""Difference of the clocks from which on a refusal is put down to it. S3 allows a quarter of an hour."""
MAX_ANSWER_BYTES: Final = 65_536
"""Bytes of an error's body that are read."""
MAX_TEXT_LENGTH: Final = 200

_CODE = re.compile(rb"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(rb"<Message>([^<]*)</Message>")


class BusyStoreError(Exception):
    """The store has answered that it cannot do the call now."""


class CarefulPool(urllib3.PoolManager):
    """A pool that looks at the status of an answer before anybody reads its body, which may be of any kind."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> BaseHTTPResponse:  # type: ignore[override]
        """Makes a request; raises `BusyStoreError` if the store is busy."""
        response = super().urlopen(method, url, redirect, **options)
        if not is_busy(response):
            return response
        body = b""
        if method != "HEAD":
            body = response.data if options.get("preload_content", True) else response.read(MAX_ANSWER_BYTES)
        response.close()
        raise BusyStoreError(_describe(response.status, body[:MAX_ANSWER_BYTES]))


def is_busy(response: BaseHTTPResponse) -> bool:
    """Returns whether the same call may succeed later, by its status.

    What a store says of a call that it does not have (501) is left to the caller.
    """
    if response.status == HTTPStatus.NOT_IMPLEMENTED:
        return "application/xml" not in response.headers.get("content-type", "")
    return response.status >= HTTPStatus.INTERNAL_SERVER_ERROR or response.status in BUSY


def may_heal(error: S3Error) -> bool:
    """Returns whether the same call may succeed later, by an answer that names the error."""
    response = error.response
    return (
        response.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        or bool(_HEALING.search(error.code or ""))
        or bool(clock_skew(response.headers))
    )


def clock_skew(headers: Mapping[str, str]) -> str:
    """Returns how far this machine's clock is from the store's, in words; empty if they agree, or nobody knows."""
    try:
        date = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return ""
    seconds = (datetime.now(UTC) - date.replace(tzinfo=UTC)).total_seconds()
    if abs(seconds) < MAX_SKEW_SECONDS:
        return ""
    side = "ahead of" if seconds > 0 else "behind"
    return f"the clock of this machine is {abs(seconds) / 60:.0f} minutes {side} the store's"


def _describe(status: int, body: bytes) -> str:
    """Returns the status, and what S3 says in an error's body."""
    code, message = _CODE.search(body), _MESSAGE.search(body)
    parts = [str(status), *(found[1].decode(errors="replace") for found in (code, message) if found)]
    if code is None:
        with suppress(ValueError):
            parts.append(HTTPStatus(status).phrase)
    return ": ".join(" ".join(part.split())[:MAX_TEXT_LENGTH] for part in parts)
