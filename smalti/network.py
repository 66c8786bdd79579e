"""What connections to other machines need: TLS, keys that others cannot read, and certificates that are renewed."""

import ipaddress
import logging
import resource
import socket
import ssl
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from smalti.errors import InvalidInputError
from smalti.settings import PREFIX, settings

__all__ = [
    "PLAINTEXT",
    "WatchedFiles",
    "address_of",
    "cannot_listen",
    "check_key_pair",
    "check_plaintext",
    "is_this_machine",
    "max_connections",
    "network_of",
    "warn_of_open_key",
]

PLAINTEXT: Final = f"{PREFIX}PLAINTEXT"
"""The variable that allows plaintext to and from other machines, for every protocol."""

log = logging.getLogger(__name__)


def is_this_machine(host: str) -> bool:
    """Returns whether a host is certainly this machine, so that nobody else can read the traffic."""
    if host == "localhost" or host.startswith("/"):  # A path is a Unix socket.
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def address_of(host: str, port: int) -> str:
    """Returns a host and a port as URLs have them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cannot_listen(prefix: str, host: str, port: int, *, field: str = "PORT") -> InvalidInputError:
    """Returns the error of a server that cannot listen; it names the setting that is the cause.

    Args:
        prefix: what the variables of both settings begin with.
        host: the address to listen on, the setting HOST.
        port: the port to listen on.
        field: the setting of the port.
    """
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.bind(found[0][4])
    except OSError as error:
        return InvalidInputError(
            f"{prefix}HOST",
            f"{host} is no address of this machine that can be listened on ({error.strerror or error})",
        )
    return InvalidInputError(
        f"{prefix}{field}",
        f"cannot listen on {address_of(host, port)}: the port is in use, or is not for this user",
    )


def network_of(address: str) -> str:
    """Returns the network that counts as one client: an IPv4 address, or 64 bits of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((found, 64), strict=False))
    return address


def check_plaintext(host: str, variable: str, problem: str, *, also: str = "") -> None:
    """Checks that plaintext to or from a host is allowed.

    Args:
        host: the other machine, or the address that a server listens on.
        variable: the variable that would turn TLS on.
        problem: what is wrong with it, such as "is not set".
        also: a further variable that allows plaintext for this protocol alone, for the message.

    Raises:
        InvalidInputError: the host is another machine, and `SMALTI_PLAINTEXT` does not allow plaintext.
    """
    if not is_this_machine(host) and not settings().plaintext:
        allowed = f"{also}=1 or {PLAINTEXT}=1" if also else f"{PLAINTEXT}=1"
        raise InvalidInputError(
            variable,
            f"{problem}, so others could read the traffic with {host}; "
            f"use TLS, or set {allowed} if the network is trusted",
        )


def warn_of_open_key(variable: str, path: Path) -> None:
    """Logs a warning if other users of this machine can read a private key, or replace it.

    A warning and no error, since the volumes of secrets in containers are readable by everyone in the container, where
    there is nobody else.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return  # Whoever reads the file reports this better.
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        log.warning("%s: others can read or change %s (mode %o); chmod 600 it", variable, path, mode)


def check_key_pair(prefix: str, certificate: Path, key: Path) -> None:
    """Checks that a certificate and its private key can be used together; warns of a key that others can read.

    Args:
        prefix: what the variables of both files begin with, before `CERTIFICATE` and `KEY`.
        certificate: PEM file of the certificate.
        key: PEM file of the key.

    Raises:
        InvalidInputError: a file is missing or invalid, or the key has a password or belongs to another certificate.
    """
    warn_of_open_key(f"{prefix}KEY", key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise InvalidInputError(
            f"{prefix}CERTIFICATE", f"{certificate} with {key} cannot be used: {error.strerror or error}"
        ) from None


def max_connections(wanted: int) -> int:
    """Returns how many connections a port may have: no more than half of the files that this process may open.

    The other half is for the broker, the store, the database and the other ports.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else max(1, min(wanted, files // 2))


class WatchedFiles:
    """Tells when files have changed; a missing file counts as unchanged, since it may be just being replaced."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._seen = self._look()

    def changed(self) -> bool:
        """Returns whether a file has changed since the last call, or since the creation."""
        now = self._look()
        if now is None or now == self._seen:
            return False
        self._seen = now
        return True

    def _look(self) -> tuple[tuple[int, int, int], ...] | None:
        try:
            found = [path.stat() for path in self._paths]
        except OSError:
            return None
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)
