"""Who makes a call: the hook of a server that decides, and the check of stages, which serve the system alone."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from smalti.errors import AuthenticationError, InvalidInputError, PermissionDeniedError
from smalti.rpc.settings import RpcSettings, variable
from smalti.settings import listed
from smalti.telemetry import audit

log = logging.getLogger(__name__)

AUTHORIZATION: Final = "authorization"
"""The metadata key of a key or token, as in "Bearer KEY"."""
_NAMES: Final = "x509_subject_alternative_name"
"""What gRPC calls the names of a client's certificate."""


@runtime_checkable
class Authenticate(Protocol):
    """Finds out who makes a call, and whether they may. Called for every call, before its request is received."""

    async def __call__(self, method: str, metadata: Mapping[str, str], context: Any) -> None:
        """Returns if the call may go on.

        Args:
            method: the method, such as "/smalti.v1.ImageService/GetJob".
            metadata: the metadata of the call.
            context: the call.

        Raises:
            AuthenticationError: nobody knows who makes the call.
            PermissionDeniedError: they may not make it.
        """
        ...


def names_of(context: Any) -> tuple[str, ...]:
    """Returns the names (SAN) of the certificate of a call's client; none without mTLS."""
    return tuple(name.decode(errors="replace") for name in context.auth_context().get(_NAMES, ()))


class SystemOnly:
    """Lets in only clients whose certificates have one of the system's own names."""

    def __init__(self, names: Iterable[str]) -> None:
        """Takes the names."""
        self._names = frozenset(names)

    async def __call__(self, method: str, metadata: Mapping[str, str], context: Any) -> None:
        """See `Authenticate`."""
        names = names_of(context)
        if self._names.isdisjoint(names):
            audit.write(
                "refused", method=method, who=f"certificate {', '.join(names)}", reason="NOT_PERMITTED"
            )
            raise PermissionDeniedError(
                f"this service serves the system alone; the certificate has none of the names of its "
                f"{variable('system_names')}"
            )


def system_only(settings: RpcSettings) -> SystemOnly | None:
    """Returns the check of a stage service; None without mTLS, when nobody's name is known.

    Raises:
        InvalidInputError: the names of the system are not set, and the server's own certificate has none.
    """
    if settings.tls_client_ca is None or settings.tls_certificate is None:
        return None
    names = frozenset(listed(settings.system_names)) or _own_names(settings.tls_certificate)
    if not names:
        raise InvalidInputError(
            variable("system_names"), f"is not set, and {settings.tls_certificate} has no names (SAN); set it"
        )
    log.info("serves certificates with one of the names %s", ", ".join(sorted(names)))
    return SystemOnly(names)


def bearer(metadata: Mapping[str, str]) -> str:
    """Returns the key or token of a call; empty if it has none.

    Raises:
        AuthenticationError: the metadata has another form.
    """
    header = metadata.get(AUTHORIZATION, "").strip()
    if not header:
        return ""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise AuthenticationError('the header must have the form "authorization: Bearer KEY"')
    return token.strip()


def _own_names(certificate: Path) -> frozenset[str]:
    """Returns the names of the first certificate of a file, as gRPC gives those of a client."""
    from cryptography import x509  # Only services need it, and have it.

    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return frozenset()
    return frozenset(
        str(value)
        for kind in (x509.DNSName, x509.IPAddress, x509.UniformResourceIdentifier)
        for value in names.get_values_for_type(kind)
    )
