"""TLS among the parts of SeaweedFS, with client certificates, so that its S3 port alone answers others."""

import datetime
import ipaddress
import os
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

GRPC_PARTS: Final = (
    "volume",
    "master",
    "filer",
    "s3",
    "msg_broker",
    "msg_agent",
    "admin",
    "worker",
    "mq",
    "client",
)
HTTPS_PARTS: Final = ("volume", "master", "filer", "admin")
LIFETIME: Final = datetime.timedelta(days=3650)


def write_store_security(folder: Path, host: str) -> None:
    """Writes a new certificate, its key, and the `security.toml` that SeaweedFS reads from its working directory.

    All parts run in one process and share the certificate, which is its own authority. Without TLS, everybody on the
    machine could read, list and delete objects through the ports of the filer and the volumes, without any key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "smalti-store")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    files = {name: folder / f"tls.{name}" for name in ("pem", "key")}
    write_private(files["pem"], certificate.public_bytes(Encoding.PEM))
    write_private(files["key"], key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pair = f'cert = "{files["pem"]}"\nkey = "{files["key"]}"\n'
    authority = f'ca = "{files["pem"]}"\n'
    sections = [
        f"[grpc]\n{authority}",
        *(f"[grpc.{part}]\n{pair}" for part in GRPC_PARTS),
        f"[https.client]\nenabled = true\n{pair}{authority}",
        *(f"[https.{part}]\n{pair}{authority}" for part in HTTPS_PARTS),
    ]
    write_private(folder / "security.toml", "".join(sections).encode())


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that only its owner can read."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
