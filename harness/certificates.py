"""Certificates and keys for TLS."""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Identity:
    """A certificate and its key, in memory and in files."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    certificate_file: Path
    key_file: Path


def make_identity(
    folder: Path,
    name: str,
    *,
    signed_by: Identity | None = None,
    host: str = "127.0.0.1",
    uri: str = "",
    hosts: Sequence[str] = (),
) -> Identity:
    """Creates an identity and writes its files; without `signed_by`, a certificate authority.

    Its certificate has the names `host` and, if it is given, `uri`; or those of `hosts`, which have no addresses.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names: list[x509.GeneralName] = [x509.DNSName(each) for each in hosts]
    if not hosts:
        names.append(x509.IPAddress(ipaddress.ip_address(host)))
    if uri:
        names.append(x509.UniformResourceIdentifier(uri))
    now = datetime.datetime.now(datetime.UTC)
    is_authority = signed_by is None
    issuer_key = (signed_by.key if signed_by else key).public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signed_by.certificate.subject if signed_by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        # From 3.13 on, Python wants these.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=is_authority,
                crl_sign=is_authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    certificate = builder.sign(signed_by.key if signed_by else key, hashes.SHA256())
    identity = Identity(certificate, key, folder / f"{name}.pem", folder / f"{name}.key")
    identity.certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))
    identity.key_file.touch(mode=0o600)
    identity.key_file.write_bytes(private_key(key, NoEncryption()))
    return identity


def private_key(key: ec.EllipticCurvePrivateKey, encryption: KeySerializationEncryption) -> bytes:
    """Returns a private key as PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
