"""`smalti tenants`: limits, weights, usage, and webhooks."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select

from harness.gateway import GatewayHarness, sqlite_database
from smalti.cli import run
from smalti.errors import QuotaExceededError
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.services.gateway.database.tables import ApiKey, Tenant, Webhook


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the audit log of the commands, and a database of SQLite that they use."""
    sqlite_database(tmp_path).close()
    monkeypatch.setenv("SMALTI_GATEWAY_DATABASE", f"sqlite:///{tmp_path / 'gateway.sqlite3'}")
    monkeypatch.setenv("SMALTI_LOG_AUDIT", str(tmp_path / "audit.jsonl"))
    yield tmp_path / "audit.jsonl"
    for handler in logging.getLogger("smalti.audit").handlers[:]:
        logging.getLogger("smalti.audit").removeHandler(handler)
        handler.close()


def test_limits_that_were_set_hold(
    audit: Path, capsys: pytest.CaptureFixture[str], tiny: ModelFolder
) -> None:
    assert run(["tenants", "create", "shop", "--weight", "3", "--requests-per-minute", "2"]) == 0
    assert "smalti keys create --tenant shop" in capsys.readouterr().out
    with closing(sqlite_database(audit.parent)) as database:
        gateway = GatewayHarness(database, ModelSpec.load(tiny))
        for _ in range(2):
            gateway.create(tenant="shop")
        with pytest.raises(QuotaExceededError):
            gateway.create(tenant="shop")
        assert run(["tenants", "set", "shop", "--requests-per-minute", "none", "--open-jobs", "5"]) == 0
        assert capsys.readouterr().out == "shop: weight 3, open jobs 5\n"
        gateway.create(tenant="shop")
        gateway.close()
    assert run(["tenants", "list", "--json"]) == 0
    rows = {row["tenant"]: row for row in json.loads(capsys.readouterr().out)}
    assert sorted(rows) == ["default", "shop"]
    shop = rows["shop"]
    assert (shop["weight"], shop["open_jobs"], shop["requests_per_minute"], shop["open"]) == (3, 5, None, 3)
    assert run(["tenants", "list"]) == 0
    assert re.search(r"shop +3 +3 +3 +open jobs 5 *\n", capsys.readouterr().out)
    assert run(["tenants", "usage", "--days", "400", "--json"]) == 0
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["event"], line["tenant"], line["weight"]) for line in lines] == [
        ("tenant created", "shop", 3),
        ("tenant changed", "shop", 3),
    ]


def test_secret_is_shown_once_and_rotated(audit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tenants", "webhook", "show", "default"]) == 2
    assert "has no webhook" in capsys.readouterr().err
    assert run(["tenants", "webhook", "set", "default", "--url", "https://example.org/x"]) == 0
    first = capsys.readouterr().out.strip()
    assert re.fullmatch(r"whsec_[\w+/]{43}=", first)
    assert run(["tenants", "webhook", "set", "default", "--include-prompt"]) == 0
    assert capsys.readouterr().out == ""
    assert run(["tenants", "webhook", "rotate", "default", "--keep", "1"]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() != first
    assert "signs too for 1 h" in printed.err
    assert run(["tenants", "webhook", "show", "default"]) == 0
    shown = capsys.readouterr().out
    assert "https://example.org/x, with prompts." in shown
    assert "0 notices wait." in shown
    assert run(["tenants", "webhook", "set", "default", "--url", "none"]) == 0
    assert "the URLs of its requests alone" in capsys.readouterr().err
    assert "whsec" not in audit.read_text()
    events = [json.loads(line)["event"] for line in audit.read_text().splitlines()]
    assert events == [
        "webhook changed", "webhook secret created", "webhook changed", "webhook secret rotated", "webhook changed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["create", "default"], "TENANT: 'default' exists already"),
        (["create", "Shop"], "TENANT: must be 1 to 64 characters"),
        (["set", "nobody"], "TENANT: there is no tenant 'nobody'"),
        (["set", "default", "--weight", "101"], "--weight: must be between 1 and 100, got 101"),
        (
            ["set", "default", "--batch-slots", "0"],
            "--batch-slots: must be between 1 and 1099511627776, got 0",
        ),
        (
            ["set", "default", "--stored-bytes", "9" * 14],
            "--stored-bytes: must be between 0 and 1099511627776",
        ),
        (["set", "default", "--retention", "1e3"], "--retention: must be a whole number or none, got '1e3'"),
        (["webhook", "set", "default", "--url", "http://example.org/"], "--url: must be an https URL"),
        (
            ["webhook", "set", "default", "--url", "https://10.0.0.1/"],
            "--url: 10.0.0.1 is not a public address",
        ),
        (["webhook", "set", "nobody"], "TENANT: there is no tenant 'nobody'"),
        (["webhook", "rotate", "default"], "TENANT: 'default' has no secret"),
    ],
)
def test_commands_say_what_is_wrong(
    arguments: list[str], problem: str, audit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tenants", *arguments]) == 2
    assert problem in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["keys", "create"],
        ["tenants", "create", "shop"],
        ["tenants", "webhook", "set", "default", "--url", "https://example.org/"],
    ],
)
def test_nothing_is_made_that_the_audit_log_cannot_have(
    arguments: list[str], audit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key, or a secret, that was made and could not be shown would be lost."""
    monkeypatch.setenv("SMALTI_LOG_AUDIT", str(audit.parent / "missing" / "audit.jsonl"))
    assert run(arguments) == 2
    assert "SMALTI_LOG_AUDIT" in capsys.readouterr().err
    with closing(sqlite_database(audit.parent)) as database, database.read() as session:
        assert session.scalars(select(Tenant.id)).all() == ["default"]
        assert session.scalars(select(ApiKey.id)).all() == []
        assert session.scalars(select(Webhook.tenant)).all() == []


@pytest.mark.process
def test_commands_name_the_extra_that_they_need() -> None:
    script = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "sqlalchemy":
            raise ModuleNotFoundError("belongs to another extra", name=name)
sys.meta_path.insert(0, Refuse())
from smalti.cli import run
for words in ("keys list", "keys create", "tenants list", "tenants webhook set default", "revisions list"):
    print(run(words.split()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["2"] * 5, done.stderr
    assert set(done.stderr.splitlines()) == {
        "smalti: sqlalchemy is not installed: pip install 'smalti[gateway]'"
    }
