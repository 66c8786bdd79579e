"""The settings of the web service. The variable of a field is `SMALTI_WEB_` and the field's name."""

from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from smalti.network import is_this_machine
from smalti.settings import (
    PREFIX,
    Auth,
    EnvironmentSettings,
    Host,
    Seconds,
    SecondsOrNone,
    check_networks,
    listed,
    read_settings,
    settings,
)

WEB_PREFIX = f"{PREFIX}WEB_"
MIN_KEY_LENGTH = 32


class WebSettings(EnvironmentSettings):
    """The settings; all times are in seconds."""

    model_config = SettingsConfigDict(env_prefix=WEB_PREFIX)

    host: Host = "127.0.0.1"
    """Address to listen on; `0.0.0.0` or `::` for all of the machine's addresses, which needs `SMALTI_AUTH` or
    `SMALTI_WEB_OPEN`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port to listen on; 0 picks a free one."""
    open: bool = False
    """Allow other machines to connect although `SMALTI_AUTH` is not set: anyone who reaches the port can draw."""
    key: SecretStr | None = None
    """Key of the web service itself, which `smalti keys create --role web` makes: with it the gateway gives out the
    pictures that signed URLs name. Needed where the gateway wants keys."""
    public_url: str | None = None
    """URL at which clients reach the service, such as `https://pictures.example`; URLs of pictures begin with it.
    Unset: the scheme and host of each request."""
    tls_certificate: Path | None = None
    """PEM file with the certificate and its intermediate certificates; the service then speaks HTTPS only."""
    tls_key: Path | None = None
    """PEM file with the private key of the certificate, without a password."""
    proxies: str = ""
    """Addresses and networks of proxies, separated by commas, whose `X-Forwarded-For` and `X-Forwarded-Proto` are
    believed. These headers are ignored from everybody else."""
    origins: str = ""
    """Origins, separated by commas, whose pages may use the API in a browser (CORS), such as `https://app.example`; `*`
    for all. Pages of the service itself always may."""
    signing_key: SecretStr | None = None
    """Secret of at least 32 characters that signs the URLs of pictures; the same for all processes of the service.
    Unset: a random one, so URLs become invalid when the process ends."""
    url_lifetime: Seconds = 3600.0
    """Lifetime of the URLs of pictures in answers of the OpenAI API."""
    wall: bool = False
    """Show every visitor of the page what is being drawn right now, by anyone, or with a key by its tenant."""
    wall_prompts: bool = False
    """Show the prompts on the wall too."""
    store_urls: bool = False
    """Answer with URLs of the object store in place of our own, where the store has them. For stores that clients can
    reach (`SMALTI_STORE_PUBLIC_URL`)."""
    wait: Seconds = 600.0
    """Time limit of a job that a client waits for in a call of the OpenAI API."""
    abandon: SecondsOrNone = 15.0
    """Time after which the job of a client that went away is cancelled. It must be longer than the client's delay
    before a retry."""
    body_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 2**18
    """Maximum size of the body of a request, in bytes."""
    upload_bytes: Annotated[int, Field(ge=1024, le=2**30)] = 12 * 2**20
    """Maximum size of the body of a request with pictures, in bytes. Must be smaller than the gateway's
    `SMALTI_RPC_RECEIVE_BYTES`."""
    file_bytes: Annotated[int, Field(ge=1024, le=2**43)] = 512 * 2**20
    """Maximum size of the body of a request with a file, or a part of one, in bytes. While it arrives, it is in the
    folder for temporary files (`TMPDIR`), which needs room for several."""
    connections: Annotated[int, Field(ge=1, le=10**6)] = 2000
    """Maximum number of connections; further ones are closed."""
    client_requests: Annotated[int, Field(ge=1, le=10**6)] = 256
    """Maximum number of concurrent requests of a client, event streams included. A client is an IPv4 address, or an
    IPv6 network of 64 bits."""
    client_rate: Annotated[float, Field(gt=0, le=10**6)] = 50.0
    """Requests per second of a client, on average over twenty seconds."""
    header_timeout: Seconds = 10.0
    """Time in which the header of a request must arrive."""
    body_timeout: Seconds = 30.0
    """Time in which the body of a request must arrive."""
    file_timeout: Seconds = 3600.0
    """Time in which the body of a request with a file must arrive."""
    send_timeout: Seconds = 60.0
    """Time in which a client must take each part of an answer."""
    keep_alive: Seconds = 30.0
    """Time for which an idle connection stays open."""
    retry: Seconds = 20.0
    """Time for which a gateway that does not answer is called again before a request fails."""
    grace: SecondsOrNone = 25.0
    """Time after SIGTERM that running requests have to finish."""
    drain_delay: SecondsOrNone = 0.0
    """Time for which a stopping service still accepts requests while `/readyz` says 503, so that load balancers
    notice."""

    @field_validator("proxies")
    @classmethod
    def _check_proxies(cls, text: str) -> str:
        return check_networks(text)

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, text: str) -> str:
        for each in listed(text):
            if each != "*" and not _is_origin(each):
                raise ValueError(f"{each!r} must be an origin such as https://app.example, or *")
        return text

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str | None) -> str | None:
        if url is not None and not _is_origin(url.rstrip("/")):
            raise ValueError(f"{url!r} must be a URL without a path, such as https://pictures.example")
        return url.rstrip("/") if url else None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        # Here, since the message for a field quotes its value.
        if self.signing_key is not None and len(self.signing_key.get_secret_value()) < MIN_KEY_LENGTH:
            raise ValueError(f"{WEB_PREFIX}SIGNING_KEY must have at least {MIN_KEY_LENGTH} characters")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError(f"set both {WEB_PREFIX}TLS_CERTIFICATE and {WEB_PREFIX}TLS_KEY, or neither")
        ways = settings().auth_ways
        if not self.open and not is_this_machine(self.host) and not ways - {Auth.MTLS}:
            raise ValueError(
                f"{WEB_PREFIX}HOST={self.host} lets others draw without a key; set {PREFIX}AUTH to keys or jwt, or "
                f"{WEB_PREFIX}OPEN=1 if everybody who reaches the port may draw"
            )
        return self


def web_settings() -> WebSettings:
    """Reads the settings from the environment.

    Raises:
        InvalidInputError: a value is invalid; names the variable.
    """
    return read_settings(WebSettings)


def wants_key() -> bool:
    """Returns whether requests without a key or a token are refused here; the gateway looks at those that have one."""
    return not settings().auth_ways.isdisjoint({Auth.KEYS, Auth.JWT})


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            text == f"{parts.scheme}://{parts.netloc}"
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
        )
    except ValueError:
        return False
