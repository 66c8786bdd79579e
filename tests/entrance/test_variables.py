"""Variables of other programs do not govern this one."""

import os
import re
import urllib.request
from collections.abc import Iterator

import pytest

from harness.paths import DOCS
from smalti.entrance import proxies, variables

PAGE = DOCS / "environment.md"


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    before, ignored = dict(os.environ), dict(variables._ignored)
    yield
    os.environ.clear()
    os.environ.update(before)
    variables._ignored.clear()
    variables._ignored.update(ignored)
    variables._inherited.clear()


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("CELERY_BROKER_URL", "redis://elsewhere", False),
        ("CELERY_BROKER_WRITE_URL", "redis://elsewhere", False),
        ("DJANGO_SETTINGS_MODULE", "shop.settings", False),
        ("PROMETHEUS_MULTIPROC_DIR", "/nowhere", False),
        ("PGHOSTADDR", "192.0.2.1", False),
        ("PGPASSWORD", "secret", True),
        ("JAX_PLATFORMS", "rocm", True),
        ("JAX_ENABLE_X64", "1", False),
        ("JAX_DEFAULT_PRNG_IMPL", "rbg", False),
        ("GRPC_POLL_STRATEGY", "nonsense", False),
        ("OMP_NUM_THREADS", "4", True),
        ("OMP_NUM_THREADS", "4,2", True),
        ("OMP_NUM_THREADS", "0", False),
        ("OMP_NUM_THREADS", "many", False),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "30", True),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon", False),
        ("WEB_CONCURRENCY", "4", False),
        ("SSLKEYLOGFILE", "/tmp/keys", False),
        ("OTEL_TRACES_SAMPLER", "always_on", True),
        ("OTEL_PROPAGATORS", "b3", False),
        ("C_INCLUDE_PATH", "/usr/include", True),
        ("PATH", "/usr/bin", True),
    ],
)
def test_variables_for_others_are_removed_and_their_command_gets_them(
    name: str, value: str, kept: bool
) -> None:
    os.environ[name] = value
    variables.neutralise()
    assert (name in os.environ) is kept
    assert variables.inherited()[name] == value
    said = [str(each) for each in variables.ignored() if each.name == name]
    assert len(said) == (0 if kept else 1)
    assert value not in "".join(said)  # It may be a secret.


def test_this_machine_is_never_proxied() -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]
    variables.neutralise()
    assert "no_proxy" not in os.environ
    os.environ |= {
        "https_proxy": "http://proxy.example:3128",
        "NO_PROXY": "internal.example",
        "no_grpc_proxy": "a",
    }
    variables.neutralise()
    assert urllib.request.proxy_bypass("internal.example")
    for host in ("localhost", "127.0.0.1", "127.0.0.1:50050"):
        assert urllib.request.proxy_bypass(host)
        assert not urllib.request.proxy_bypass("example.com")
    assert variables.inherited()["no_grpc_proxy"].split(",") == ["a", *proxies.THIS_MACHINE]
    variables.neutralise()  # A second time changes nothing.
    assert os.environ["no_proxy"].split(",") == ["internal.example", *proxies.THIS_MACHINE]
    os.environ["no_proxy"] = "*"
    variables.neutralise()
    assert os.environ["no_proxy"] == "*"


def test_every_variable_is_documented() -> None:
    rows = [
        line.split("|")[1:4]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    listed = {
        name: treatment.strip() for names, _, treatment in rows for name in re.findall(r"`([^`]+)`", names)
    }
    assert sorted(listed) == sorted(name for rule in variables.RULES for name in rule.names)
    for rule in variables.RULES:
        expected = (
            "ignored" if rule.valid is None else "kept" if rule.valid is variables.any_value else "checked"
        )
        assert {listed[name] for name in rule.names} == {expected}, rule.names
