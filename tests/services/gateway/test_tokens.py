"""Tokens of an identity provider: which are accepted, and whose keys are read when."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from harness.gateway import GatewayHarness
from harness.gateway_calls import create_job, served
from harness.grpc_server import asynchronous
from smalti.errors import AuthenticationError, InvalidInputError, UnavailableError
from smalti.services.gateway.identity import Role
from smalti.services.gateway.identity.tokens import AWAY_SECONDS, FRESH_SECONDS, UNKNOWN_SECONDS, Tokens
from smalti.services.gateway.settings import GatewaySettings
from smalti.settings import Auth
from tests.services.gateway.test_identity import WithKey

ISSUER, AUDIENCE = "https://login.example", "smalti"
OURS = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def published(*, kid: str = "one", **more: Any) -> str:
    """Returns a set of keys: ours under the id, and others under theirs."""
    keys = [{**json.loads(ECAlgorithm.to_jwk(OURS.public_key())), "kid": kid}]
    return json.dumps({"keys": [*keys, *more.values()]})


def token(key: Any = OURS, algorithm: str = "ES256", kid: str = "one", **changes: Any) -> str:
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ann",
        "exp": time.time() + 3600,
        "tenant": "red",
        **changes,
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})


def unsigned(claims: dict[str, Any]) -> str:
    key: Any = None
    return jwt.encode(claims, key, algorithm="none", headers={"kid": "one"})


def settings(keys: object, **more: Any) -> GatewaySettings:
    return GatewaySettings(jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwt_keys=str(keys), **more)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(published())
    return path


def test_token_makes_a_principal(file: Path) -> None:
    tokens = Tokens(settings(file))
    plain = tokens.principal(token())
    assert (plain.tenant, plain.roles, plain.name) == ("red", {Role.DRAW}, "token of 'ann'")
    assert tokens.principal(token(roles=["batch", "cook"])).roles == {Role.BATCH}
    assert tokens.principal(token(roles="draw admin web")).roles == {Role.DRAW, Role.ADMIN}
    assert tokens.principal(token(roles=7)).roles == set()
    assert tokens.principal(token(aud=["else", AUDIENCE])).tenant == "red"
    other = Tokens(settings(file, jwt_tenant="org", jwt_roles="scope"))
    found = other.principal(token(org="blue", scope="batch draw"))
    assert (found.tenant, found.roles) == ("blue", {Role.BATCH, Role.DRAW})


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (token(exp=time.time() - 3600), "has expired"),
        (token(exp=None), "is not valid"),
        (token(nbf=time.time() + 3600), "is not valid"),
        (token(aud="else"), "for another audience"),
        (token(aud=None), "is not valid"),
        (token(iss="https://login.evil.example"), "of another issuer"),
        (token(iss=None), "is not valid"),
        (token(OTHER), "is not valid"),
        (token(kid="two"), "a key that the identity provider does not publish"),
        (token(tenant=None), "no claim 'tenant'"),
        (token(tenant=["red"]), "no claim 'tenant'"),
        (token("x" * 64, "HS256"), "is not valid"),
        (unsigned({"iss": ISSUER}), "is not valid"),
        ("no token", "is not valid"),
        ("a.b.c", "is not valid"),
    ],
)
def test_wrong_tokens_are_refused(wrong: str, problem: str, file: Path) -> None:
    with pytest.raises(AuthenticationError, match=problem):
        Tokens(settings(file)).principal(wrong)


def test_public_key_is_no_secret(file: Path) -> None:
    """A token that is signed with the text of the public key, as if that were a shared secret."""
    pem = {"kty": "oct", "kid": "two", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256"}
    file.write_text(published(second=pem))
    forged = token(b"secret-secret-secret-secret-secret", "HS256", kid="two")
    with pytest.raises(AuthenticationError, match="is not valid"):
        Tokens(settings(file)).principal(forged)


def test_keys_of_a_file_are_read_again(file: Path) -> None:
    tokens = Tokens(settings(file))
    second = {**json.loads(RSAAlgorithm.to_jwk(RSA.public_key())), "kid": "two"}
    with pytest.raises(AuthenticationError):
        tokens.principal(token(RSA, "RS256", kid="two"))
    file.write_text(published(second=second))
    assert tokens.principal(token(RSA, "RS256", kid="two")).tenant == "red"
    file.write_text("half of")
    with pytest.raises(UnavailableError):
        tokens.principal(token())


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"jwt_issuer": None}, "^SMALTI_GATEWAY_JWT_ISSUER: is not set"),
        ({"jwt_audience": None}, "^SMALTI_GATEWAY_JWT_AUDIENCE: is not set"),
        ({"jwt_keys": None}, "^SMALTI_GATEWAY_JWT_KEYS: is not set"),
        ({"jwt_keys": "/nowhere.json"}, "^SMALTI_GATEWAY_JWT_KEYS: /nowhere.json cannot be read"),
        ({"jwt_keys": __file__}, "^SMALTI_GATEWAY_JWT_KEYS: .* is no set of JSON web keys"),
    ],
)
def test_settings_that_are_missing_are_named(more: dict[str, Any], problem: str, file: Path) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        Tokens(settings(file).model_copy(update=more))


class Provider:
    """Publishes keys over HTTP, and counts how often they are read."""

    def __init__(self) -> None:
        self.read = 0
        self.keys = published()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.read += 1
                self.send_response(200 if provider.keys else 503)
                self.end_headers()
                self.wfile.write(provider.keys.encode())

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    yield found
    found.close()


def test_keys_of_a_url_are_remembered_and_renewed(provider: Provider) -> None:
    now = 1000.0
    tokens = Tokens(settings(provider.url), elapsed=lambda: now)
    for _ in range(3):
        tokens.principal(token())
    assert provider.read == 1
    provider.keys = published(kid="two")
    for _ in range(3):  # Anybody can send tokens with unknown keys.
        with pytest.raises(AuthenticationError):
            tokens.principal(token(kid="two"))
    assert provider.read == 1
    now += UNKNOWN_SECONDS + 1
    assert tokens.principal(token(kid="two")).tenant == "red"
    assert provider.read == 2
    now += FRESH_SECONDS + 1
    provider.keys = ""
    assert tokens.principal(token(kid="two")).tenant == "red"


def test_provider_that_is_away_is_unavailable(provider: Provider) -> None:
    now = 1000.0
    tokens = Tokens(settings(provider.url), elapsed=lambda: now)
    provider.keys = ""
    for _ in range(3):
        with pytest.raises(UnavailableError, match="identity provider's keys cannot be read"):
            tokens.principal(token())
    assert provider.read == 1
    provider.keys = published()
    now += AWAY_SECONDS
    assert tokens.principal(token()).tenant == "red"


def test_url_of_keys_must_be_https() -> None:
    with pytest.raises(ValueError, match="https URL"):
        settings("http://login.example/keys")


@asynchronous
async def test_gateway_takes_tokens_of_tenants_that_exist(gateway: GatewayHarness, file: Path) -> None:
    key, _ = gateway.keys.create("red", [Role.DRAW], new_tenant=True)
    gatekeeper = gateway.gatekeeper(Auth.JWT, Auth.KEYS, tokens=Tokens(settings(file)))
    async with served(gateway, authenticate=gatekeeper) as stub:
        job = await create_job(WithKey(stub, token()))
        assert gateway.get(job.id).job.tenant == "red"
        await create_job(WithKey(stub, key))
        with pytest.raises(AuthenticationError, match="the tenant 'green', which does not exist"):
            await create_job(WithKey(stub, token(tenant="green")))
        with pytest.raises(AuthenticationError, match="the token is not valid"):
            await create_job(WithKey(stub, "no token"))
