"""TLS credentials from files, checked here because gRPC's own error does not say which file is wrong."""

import logging
import ssl
from pathlib import Path

import grpc

from smalti.errors import InvalidInputError
from smalti.network import WatchedFiles, check_plaintext, warn_of_open_key
from smalti.rpc.settings import RpcSettings, variable

log = logging.getLogger(__name__)


def server_credentials(settings: RpcSettings) -> grpc.ServerCredentials | None:
    """Returns the TLS credentials of a server; None for a server without TLS.

    Raises:
        InvalidInputError: a file is invalid or missing, or plaintext is not allowed; names the variable.
    """
    configuration = _server_configuration(settings)
    if configuration is None:
        if settings.tls_client_ca is not None:
            raise InvalidInputError(
                variable("tls_client_ca"),
                f"needs {variable('tls_certificate')} and {variable('tls_key')}; set them too",
            )
        _check_plaintext(settings, settings.host, variable("tls_certificate"))
        return None
    warn_of_open_key(variable("tls_key"), _path(settings.tls_key))
    files = WatchedFiles(_given(settings, "tls_certificate", "tls_key", "tls_client_ca"))

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Returns what a new connection uses; None if nothing has changed. Called for each of them."""
        if not files.changed():
            return None
        try:
            found = _server_configuration(settings)
        except InvalidInputError as error:  # Perhaps half of the files were replaced so far.
            log.warning("the renewed certificate cannot be used yet: %s", error)
            return None
        log.info("new connections use the renewed certificate")
        return found

    return grpc.dynamic_ssl_server_credentials(
        configuration,
        renewed,  # type: ignore[arg-type]  # The stubs lack that None means no change.
        require_client_authentication=settings.tls_client_ca is not None,
    )


def _server_configuration(settings: RpcSettings) -> grpc.ServerCertificateConfiguration | None:
    """Reads the files of a server; returns None if it has no certificate."""
    identity = _identity(settings, "tls_certificate", "tls_key")
    authorities = _authorities(settings, "tls_client_ca")
    if identity is None:
        return None
    return grpc.ssl_server_certificate_configuration([identity], root_certificates=authorities)


def channel_credentials(settings: RpcSettings, host: str) -> grpc.ChannelCredentials | None:
    """Returns the TLS credentials of a channel; None for a channel without TLS.

    Args:
        settings: the settings.
        host: the host that is called.

    Raises:
        InvalidInputError: a file is invalid or missing, or plaintext is not allowed; names the variable.
    """
    identity = _identity(settings, "tls_client_certificate", "tls_client_key")
    authorities = _authorities(settings, "tls_ca")
    if identity is None and authorities is None and not settings.tls:
        _check_plaintext(settings, host, variable("tls"))
        return None
    if identity is not None:
        warn_of_open_key(variable("tls_client_key"), _path(settings.tls_client_key))
    key, certificate = identity or (None, None)
    return grpc.ssl_channel_credentials(authorities, key, certificate)


def channel_files(settings: RpcSettings) -> list[Path]:
    """Returns the files that the credentials of a channel are read from."""
    return _given(settings, "tls_ca", "tls_client_certificate", "tls_client_key")


def closed_handshake_remedy(text: str, settings: RpcSettings) -> str:
    """Returns what to try if a server has closed a connection as servers do that refuse a certificate, or ask for one.

    Args:
        text: what gRPC says of a call that is UNAVAILABLE.
        settings: how the server is called.

    Returns:
        Half a line, for the end of the text; empty if nothing points to certificates.
    """
    if "Socket closed" not in text:
        return ""
    certificate, key = variable("tls_client_certificate"), variable("tls_client_key")
    if settings.tls_client_certificate is not None:
        return f"the server may not accept the certificate of {certificate}"
    if settings.tls or settings.tls_ca is not None:
        return f"if the server asks for a client certificate, set {certificate} and {key}"
    return ""


def _given(settings: RpcSettings, *names: str) -> list[Path]:
    return [path for name in names if (path := getattr(settings, name)) is not None]


def _path(path: Path | None) -> Path:
    assert path is not None  # A certificate without its key was refused.
    return path


def _check_plaintext(settings: RpcSettings, host: str, remedy: str) -> None:
    if not settings.plaintext:
        check_plaintext(host, remedy, "is not set", also=variable("plaintext"))


def _identity(settings: RpcSettings, certificate: str, key: str) -> tuple[bytes, bytes] | None:
    """Returns (key, certificate); None if neither is set."""
    paths: dict[str, Path | None] = {name: getattr(settings, name) for name in (certificate, key)}
    if not any(paths.values()):
        return None
    for name, path in paths.items():
        if path is None:
            other = variable(key if name == certificate else certificate)
            raise InvalidInputError(variable(name), f"is not set, but {other} is; set both or neither")
    content = {name: _read(name, path) for name, path in paths.items() if path is not None}
    _check_certificates(certificate, paths[certificate], content[certificate])
    try:
        # This is the only way to find out, before a client connects, whether the key belongs to the certificate.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            str(paths[certificate]), str(paths[key]), password=_no_password
        )
    except (ssl.SSLError, _EncryptedKeyError) as error:
        problem = (
            "is encrypted; remove its password"
            if isinstance(error, _EncryptedKeyError)
            else f"is not a PEM private key, or does not belong to {paths[certificate]}"
        )
        raise InvalidInputError(variable(key), f"{paths[key]} {problem}") from None
    return content[key], content[certificate]


def _authorities(settings: RpcSettings, name: str) -> bytes | None:
    path: Path | None = getattr(settings, name)
    if path is None:
        return None
    content = _read(name, path)
    _check_certificates(name, path, content)
    return content


def _check_certificates(name: str, path: Path | None, content: bytes) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=content.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError, ValueError):
        raise InvalidInputError(variable(name), f"{path} contains no PEM certificate") from None


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(variable(name), f"{path} cannot be read: {error.strerror}") from None


class _EncryptedKeyError(Exception):
    """The key has a password."""


def _no_password() -> str:
    raise _EncryptedKeyError
