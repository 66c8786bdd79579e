"""Keys: how they are made and kept, and the commands for them."""

import json
import logging
import re
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest
import sqlalchemy

from harness.gateway import GatewayHarness, sqlite_database
from smalti.cli import run
from smalti.errors import InvalidInputError
from smalti.services.gateway.database.connection import Database
from smalti.services.gateway.database.tables import ApiKey
from smalti.services.gateway.identity import KeyRepository, Role
from smalti.services.gateway.identity import keys as module

DAY = 24 * 3600.0


def test_key_has_256_random_bits_and_is_not_kept(gateway: GatewayHarness, database: Database) -> None:
    made = [gateway.keys.create("default", [Role.DRAW], new_tenant=True)[0] for _ in range(3)]
    assert len(set(made)) == 3
    for key in made:
        assert key.startswith("sk-smalti-")
        assert len(urlsafe_b64decode(key.removeprefix("sk-smalti-") + "=")) == 32
    with database.read() as session:
        rows = session.execute(sqlalchemy.text("SELECT * FROM api_keys")).all()
    assert len(rows) == 3
    assert not any(key.removeprefix("sk-smalti-") in str(rows) for key in made)
    assert {gateway.keys.find(key).id for key in made} == {each.id for each in gateway.keys.list()}  # type: ignore[union-attr]
    assert gateway.keys.find(made[0][:-1]) is None


def test_digests_are_compared_whole(gateway: GatewayHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id alone, which is in lists and logs, opens nothing."""
    key, kept = gateway.keys.create("default", [Role.DRAW], new_tenant=True)
    assert gateway.keys.find(key) is not None
    monkeypatch.setattr(module, "digest_of", lambda key: kept.id + "0" * (64 - len(kept.id)))
    assert gateway.keys.find("another key with the same id") is None


def test_last_use_is_kept_by_the_day(gateway: GatewayHarness) -> None:
    key, kept = gateway.keys.create("default", [Role.DRAW], new_tenant=True)
    assert kept.last_used is None
    assert [gateway.keys.note_use(_found(gateway, key)) for _ in range(2)] == [True, False]
    assert _found(gateway, key).last_used == int(gateway.clock() // DAY * DAY) * 1_000_000
    gateway.clock.advance(DAY)
    assert gateway.keys.note_use(_found(gateway, key))


def _found(gateway: GatewayHarness, key: str) -> ApiKey:
    kept = gateway.keys.find(key)
    assert kept is not None
    return kept


@pytest.mark.parametrize(
    ("tenant", "roles", "problem"),
    [
        ("nobody", [Role.DRAW], "^tenant: there is no tenant 'nobody'; add --new-tenant"),
        ("default", [], "^roles: give at least one of"),
        ("default", [Role.WEB, Role.ADMIN], "^roles: web is for the web service alone"),
    ],
)
def test_wrong_keys_are_not_made(tenant: str, roles: list[Role], problem: str, tmp_path: Path) -> None:
    keys = KeyRepository(sqlite_database(tmp_path))
    with pytest.raises(InvalidInputError, match=problem):
        keys.create(tenant, roles)
    assert keys.list() == []


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A database of SQLite that the commands use."""
    sqlite_database(tmp_path).close()
    monkeypatch.setenv("SMALTI_GATEWAY_DATABASE", f"sqlite:///{tmp_path / 'gateway.sqlite3'}")
    return tmp_path


def test_commands_make_list_and_revoke(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = file / "audit.jsonl"
    monkeypatch.setenv("SMALTI_LOG_AUDIT", str(audit))
    assert run(["keys", "list"]) == 0
    assert capsys.readouterr().out == "There are no keys.\n"
    options = ["--tenant", "red", "--new-tenant", "--role", "draw", "--role", "batch", "--note", "the shop"]
    assert run(["keys", "create", *options]) == 0
    printed = capsys.readouterr()
    key = printed.out.strip()
    assert re.fullmatch(r"sk-smalti-[\w-]{43}", key)
    assert re.fullmatch(r"smalti: [0-9a-f]{16} of red may batch, draw; keep the key\n", printed.err)
    assert run(["keys", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["tenant"], row["roles"], row["note"]) == ("red", ["batch", "draw"], "the shop")
    assert (row["last_used"], row["revoked"]) == (None, None)
    assert run(["keys", "list"]) == 0
    shown = capsys.readouterr().out
    assert row["id"] in shown
    assert key not in shown
    assert run(["keys", "revoke", row["id"]]) == 0
    assert capsys.readouterr().out == f"{row['id']} of red is revoked\n"
    assert run(["keys", "revoke", row["id"], "none"]) == 1
    printed = capsys.readouterr()
    assert "was revoked on" in printed.out
    assert printed.err == "smalti: there is no key none\n"
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["event"], line["key"], line["tenant"]) for line in lines] == [
        ("key created", row["id"], "red"),
        ("key revoked", row["id"], "red"),
    ]
    assert key not in audit.read_text()
    assert audit.stat().st_mode & 0o777 == 0o600
    for handler in logging.getLogger("smalti.audit").handlers[:]:
        logging.getLogger("smalti.audit").removeHandler(handler)
        handler.close()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["create", "--role", "king"], "--role: must be one of draw, batch, admin, web, got 'king'"),
        (["create", "--tenant", "red"], "--tenant: there is no tenant 'red'; add --new-tenant to make it"),
        (["create", "--tenant", "R", "--new-tenant"], "--tenant: must be 1 to 64 characters"),
        (["create", "--note", "x" * 101], "--note: must have at most 100 characters, got 101"),
        (["create", "--role", "web", "--role", "draw"], "--role: web is for the web service alone"),
    ],
)
def test_commands_say_what_is_wrong(
    arguments: list[str], problem: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["keys", *arguments]) == 2
    assert problem in " ".join(capsys.readouterr().err.split())


def test_database_without_tables_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMALTI_GATEWAY_DATABASE", f"sqlite:///{tmp_path / 'new.sqlite3'}")
    assert run(["keys", "create"]) == 2
    assert "SMALTI_GATEWAY_DATABASE: has no table of keys yet; run smalti migrate" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
