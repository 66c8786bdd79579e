"""mTLS among the services as the chart renders it: the settings of each, and the names in its certificate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from harness.certificates import Identity, make_identity

RELEASE: Final = "smalti"
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "gateway": (
        f"{RELEASE}-gateway",
        f"{RELEASE}-gateway.default.svc",
        f"{RELEASE}-gateways",
        f"{RELEASE}-gateways.default.svc",
    ),
    "stages": (f"{RELEASE}-stages",),
    "web": (f"{RELEASE}-web",),
}
"""The names in the certificates; all stages share one."""
_SERVER_NAME: Final = "SMALTI_RPC_TLS_SERVER_NAME"
_OWN: Final[Mapping[str, Mapping[str, str]]] = {
    "gateway": {_SERVER_NAME: f"{RELEASE}-stages"},
    "stages": {"SMALTI_RPC_SYSTEM_NAMES": f"{RELEASE}-gateway,{RELEASE}-stages"},
    "web": {_SERVER_NAME: f"{RELEASE}-gateway"},
}


def variables(kind: str, folder: Path) -> dict[str, str]:
    """Returns the settings of gRPC of "gateway", "stages" or "web", whose secret is mounted at `folder`."""
    certificate, key, authority = (str(folder / name) for name in ("tls.crt", "tls.key", "ca.crt"))
    return {
        "SMALTI_RPC_TLS_CERTIFICATE": certificate,
        "SMALTI_RPC_TLS_KEY": key,
        "SMALTI_RPC_TLS_CLIENT_CA": authority,
        "SMALTI_RPC_TLS_CA": authority,
        "SMALTI_RPC_TLS_CLIENT_CERTIFICATE": certificate,
        "SMALTI_RPC_TLS_CLIENT_KEY": key,
        **_OWN[kind],
    }


def make_secret(folder: Path, kind: str, authority: Identity) -> Path:
    """Returns a folder of the files that the chart mounts for "gateway", "stages" or "web"."""
    secret = folder / kind
    secret.mkdir()
    made = make_identity(secret, kind, signed_by=authority, hosts=NAMES[kind])
    made.certificate_file.rename(secret / "tls.crt")
    made.key_file.rename(secret / "tls.key")
    (secret / "ca.crt").write_bytes(authority.certificate_file.read_bytes())
    return secret
