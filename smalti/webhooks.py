"""Signatures of webhooks, as the Standard Webhooks specification says: https://www.standardwebhooks.com.

A receiver needs `verify_webhook` alone:

    verify_webhook(secret, request.headers, request.body)
"""

import hashlib
import hmac
import secrets as random
import time
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from smalti.errors import InvalidInputError

__all__ = ["SECRET_PREFIX", "TOLERANCE_SECONDS", "new_secret", "signed_headers", "verify_webhook"]

SECRET_PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32
MIN_SECRET_BYTES: Final = 24
"""The least that the specification allows. An empty secret, of a variable that is not set, would fit a forger's."""
TOLERANCE_SECONDS: Final = 300.0
"""Age of a notice up to which it is taken: what somebody has recorded cannot be sent again later."""
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"


def new_secret() -> str:
    """Returns a new secret."""
    return SECRET_PREFIX + b64encode(random.token_bytes(SECRET_BYTES)).decode()


def signed_headers(secrets: Iterable[str], *, notice_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Returns the headers of a notice, with a signature by each secret.

    Args:
        secrets: the secrets that are valid now, as `new_secret` returns them.
        notice_id: the id of the notice, the same at each try.
        timestamp: the time of the try in seconds since 1970.
        body: the body of the request.

    Raises:
        InvalidInputError: a secret has another form.
    """
    signatures = (f"v1,{_signature(secret, notice_id, str(timestamp), body)}" for secret in secrets)
    return {ID: notice_id, TIMESTAMP: str(timestamp), SIGNATURE: " ".join(signatures)}


def verify_webhook(
    secret: str | Sequence[str],
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> str:
    """Checks that a notice is from who has the secret, unchanged and fresh; returns its id.

    A notice may come more than once. Keep the ids of those that were handled, for longer than a day.

    Args:
        secret: the secret, or several that are valid at a time.
        headers: the headers of the request; capitals do not matter.
        body: the body as it was received, before anything was read from it.
        tolerance: greatest difference between the clocks, with the way, in seconds.
        now: the time in seconds since 1970; None for this machine's.

    Raises:
        InvalidInputError: it is not, or a secret has another form; names the header, or "secret".
    """
    given = {name.lower(): value for name, value in headers.items()}
    for name in (ID, TIMESTAMP, SIGNATURE):
        if not given.get(name):
            raise InvalidInputError(name, "is missing; the request is no webhook")
    notice_id, timestamp = given[ID], given[TIMESTAMP]
    if not timestamp.isascii() or not timestamp.isdecimal():
        raise InvalidInputError(TIMESTAMP, f"must be a number of seconds, got {timestamp[:40]!r}")
    age = (time.time() if now is None else now) - int(timestamp[:20])
    if abs(age) > tolerance:
        raise InvalidInputError(
            TIMESTAMP, f"is {age:.0f} s ago, more than {tolerance:g} s; perhaps it is sent again"
        )
    # Some servers keep bytes that are no text as surrogates, which cannot be encoded.
    texts = given[SIGNATURE].encode(errors="replace").split()
    found = [each.removeprefix(b"v1,") for each in texts if each.startswith(b"v1,")]
    expected = [
        _signature(each, notice_id, timestamp, body)
        for each in ((secret,) if isinstance(secret, str) else secret)
    ]
    if not any(hmac.compare_digest(one.encode(), other) for one in expected for other in found):
        raise InvalidInputError(SIGNATURE, "does not fit the secret and the body; do not trust the request")
    return notice_id


def _signature(secret: str, notice_id: str, timestamp: str, body: bytes) -> str:
    try:
        key = b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (Base64Error, ValueError):
        raise InvalidInputError("secret", f"must be {SECRET_PREFIX} and Base64") from None
    if len(key) < MIN_SECRET_BYTES:
        raise InvalidInputError("secret", f"must have at least {MIN_SECRET_BYTES} bytes, got {len(key)}")
    content = b".".join((notice_id.encode(errors="replace"), timestamp.encode(), body))
    return b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
