"""HTTPS: a renewed certificate is used for new connections, without a restart."""

import socket
import ssl
from pathlib import Path

from harness.certificates import Identity, make_identity
from tests.services.web.conftest import MakeWeb


def presented(port: int, authority: Identity) -> int:
    """Returns the serial number of the certificate that a new connection sees."""
    context = ssl.create_default_context(cafile=authority.certificate_file)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        found = secured.getpeercert()
        assert found
        return int(str(found["serialNumber"]), 16)


def test_renewed_certificate_is_used_for_new_connections(make_web: MakeWeb, tmp_path: Path) -> None:
    authority = make_identity(tmp_path, "authority")
    first = make_identity(tmp_path, "server", signed_by=authority)
    web = make_web(tls_certificate=first.certificate_file, tls_key=first.key_file)
    port = int(web.url.rpartition(":")[2])
    assert presented(port, authority) == first.certificate.serial_number
    # A half-replaced pair leaves everything as it was.
    other = make_identity(tmp_path, "other", signed_by=authority)
    first.key_file.write_bytes(other.key_file.read_bytes())
    assert presented(port, authority) == first.certificate.serial_number
    second = make_identity(tmp_path, "server", signed_by=authority)
    assert presented(port, authority) == second.certificate.serial_number
