"""Tokens of an identity provider (JWT), checked with its published keys (JWKS)."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jwt
from jwt.exceptions import PyJWKClientConnectionError

from smalti.errors import AuthenticationError, InvalidInputError, UnavailableError
from smalti.network import WatchedFiles
from smalti.services.gateway.identity.principal import Principal, Role
from smalti.services.gateway.settings import GATEWAY_PREFIX, GatewaySettings

ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
"""Those with a public and a private key. With a shared secret, the gateway could make tokens itself."""
LEEWAY_SECONDS: Final = 30.0
"""Difference of clocks that is borne."""
FRESH_SECONDS: Final = 300.0
"""Time after which the keys of a URL are read again."""
UNKNOWN_SECONDS: Final = 10.0
"""Time after which they are read again for a token whose key is unknown; not for each, since anybody can send those."""
FETCH_SECONDS: Final = 5.0
AWAY_SECONDS: Final = 1.0
"""Time after a failure in which a provider that has never answered is not asked again: calls must not queue for it."""

KEYS: Final = f"{GATEWAY_PREFIX}JWT_KEYS"


class Tokens:
    """Makes principals of tokens; thread-safe, and blocks while keys are read."""

    def __init__(self, settings: GatewaySettings, elapsed: Callable[[], float] = time.monotonic) -> None:
        """Reads the keys of a file; those of a URL are read with the first token.

        Raises:
            InvalidInputError: a setting is missing or invalid; names the variable.
        """
        for name in ("jwt_issuer", "jwt_audience", "jwt_keys"):
            if not getattr(settings, name):
                raise InvalidInputError(
                    f"{GATEWAY_PREFIX}{name.upper()}", "is not set, and SMALTI_AUTH has jwt; set it"
                )
        self._settings = settings
        source = settings.jwt_keys or ""
        self._keys: _FileKeys | _UrlKeys = (
            _UrlKeys(source, elapsed) if "://" in source else _FileKeys(Path(source))
        )

    def principal(self, token: str) -> Principal:
        """Returns whose token it is.

        Raises:
            AuthenticationError: the token is not valid.
            UnavailableError: the provider's keys cannot be read.
        """
        settings = self._settings
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.find(str(header.get("kid") or ""))
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(ALGORITHMS),
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise AuthenticationError("the token has expired; get a new one") from None
        except jwt.InvalidAudienceError:
            raise AuthenticationError("the token is for another audience") from None
        except jwt.InvalidIssuerError:
            raise AuthenticationError("the token is of another issuer") from None
        except PyJWKClientConnectionError as error:
            raise UnavailableError("the identity provider's keys cannot be read; try again", 1.0) from error
        except jwt.PyJWTError:
            raise AuthenticationError("the token is not valid") from None
        tenant = claims.get(settings.jwt_tenant)
        if not isinstance(tenant, str) or not tenant:
            raise AuthenticationError(
                f"the token has no claim {settings.jwt_tenant!r}, which names the tenant"
            )
        subject = str(claims.get("sub", ""))[:100]
        return Principal(
            tenant=tenant, roles=_roles(claims.get(settings.jwt_roles)), name=f"token of {subject!r}"
        )


def _roles(claim: Any) -> frozenset[Role]:
    """Returns the roles of a claim, a list or a text with spaces; draw for a token without the claim."""
    if claim is None:
        return frozenset({Role.DRAW})
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
    return frozenset(role for role in Role if role in names and role is not Role.WEB)


class _FileKeys:
    """The keys of a file, which is read again when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = WatchedFiles([path])
        self._set = self._load()

    def find(self, name: str) -> jwt.PyJWK:
        if self._files.changed():
            try:
                self._set = self._load()
            except InvalidInputError as error:  # Perhaps it is being replaced.
                raise UnavailableError("the keys for tokens cannot be read; try again", 1.0) from error
        return _found(self._set, name)

    def _load(self) -> jwt.PyJWKSet:
        try:
            return jwt.PyJWKSet.from_json(self._path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInputError(KEYS, f"{self._path} cannot be read: {error.strerror}") from None
        except (jwt.PyJWTError, ValueError, AttributeError, TypeError):
            raise InvalidInputError(KEYS, f"{self._path} is no set of JSON web keys (JWKS)") from None


class _UrlKeys:
    """The keys of a URL, which are read again now and then."""

    def __init__(self, url: str, elapsed: Callable[[], float]) -> None:
        self._client = jwt.PyJWKClient(url, cache_jwk_set=False, timeout=FETCH_SECONDS)
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._set: jwt.PyJWKSet | None = None
        self._read = 0.0
        self._failed = -AWAY_SECONDS

    def find(self, name: str) -> jwt.PyJWK:
        with self._lock:
            if self._set is None and self._elapsed() - self._failed < AWAY_SECONDS:
                raise PyJWKClientConnectionError("the keys could not be read")
            if self._set is None or self._elapsed() - self._read > FRESH_SECONDS:
                self._fetch()
            found = _known(self._set, name)
            if found is None and self._elapsed() - self._read > UNKNOWN_SECONDS:
                self._fetch()
        return found or _found(self._set, name)

    def _fetch(self) -> None:
        """Reads the keys; those of before stay if they cannot be read."""
        try:
            self._set = self._client.get_jwk_set(refresh=True)
        except (jwt.PyJWTError, json.JSONDecodeError) as error:
            if self._set is None:
                self._failed = self._elapsed()
                raise PyJWKClientConnectionError("the keys cannot be read") from error
        self._read = self._elapsed()


def _known(keys: jwt.PyJWKSet | None, name: str) -> jwt.PyJWK | None:
    """Returns the key of a name; the only one for a token that names none."""
    there = list(keys.keys) if keys is not None else []
    if not name:
        return there[0] if len(there) == 1 else None
    return next((each for each in there if each.key_id == name), None)


def _found(keys: jwt.PyJWKSet | None, name: str) -> jwt.PyJWK:
    found = _known(keys, name)
    if found is None:
        raise AuthenticationError(
            "the token is signed with a key that the identity provider does not publish"
        )
    return found
