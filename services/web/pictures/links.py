"""Signed URLs of pictures."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request

from smalti.services.web.pictures.formats import OutputFormat
from smalti.services.web.settings import WebSettings

PATH: Final = "/v1/images/{id}/content"
KEY_BYTES: Final = 32


@dataclass(frozen=True, kw_only=True)
class PictureLink:
    """A picture, and the form in which it is sent."""

    job_id: str
    candidate: int
    output_format: OutputFormat = OutputFormat.PNG
    quality: int = 100
    """Of JPEG and WebP; 100 is the best."""
    expires: int
    """Time in seconds since 1970 up to which the URL works."""

    @property
    def id(self) -> str:
        """The id of the picture in a URL."""
        return f"{self.job_id}-{self.candidate}"


class Links:
    """Makes and checks URLs of pictures."""

    def __init__(self, key: bytes, public_url: str | None, clock: Callable[[], float] = time.time) -> None:
        """Creates it.

        Args:
            key: signs the URLs.
            public_url: the beginning of the URLs; None for the scheme and host of each request.
            clock: returns the time in seconds since 1970.
        """
        self._key = key
        self._public_url = public_url
        self._clock = clock

    @classmethod
    def of(cls, settings: WebSettings) -> "Links":
        """Returns the links for settings."""
        key = settings.signing_key
        return cls(
            key.get_secret_value().encode() if key else secrets.token_bytes(KEY_BYTES), settings.public_url
        )

    def after(self, seconds: float) -> int:
        """Returns the time in so many seconds, for `PictureLink.expires`."""
        return int(self._clock() + seconds)

    def url(self, request: Request, link: PictureLink) -> str:
        """Returns the URL of a picture, which anyone may open until it expires."""
        base = self._public_url or str(request.base_url).rstrip("/")
        query = {
            "format": link.output_format.value,
            "quality": link.quality,
            "expires": link.expires,
            "signature": self._signature(link),
        }
        return f"{base}{PATH.format(id=link.id)}?{urlencode(query)}"

    def is_valid(self, link: PictureLink, signature: str) -> bool:
        """Returns whether a URL was made here, and has not expired."""
        expected = self._signature(link)
        return hmac.compare_digest(expected.encode(), signature.encode()) and self._clock() <= link.expires

    def _signature(self, link: PictureLink) -> str:
        signed = f"{link.id}\n{link.output_format.value}\n{link.quality}\n{link.expires}"
        return hmac.new(self._key, signed.encode(), hashlib.sha256).hexdigest()[:43]
