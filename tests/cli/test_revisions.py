"""`smalti revisions`: listing, retiring and restoring."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from harness.fleet import another_card, card_of, say_hello
from harness.gateway import GatewayHarness, sqlite_database
from smalti.cli import run
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec


def test_revisions_are_listed_and_retired(
    tmp_path: Path, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMALTI_GATEWAY_DATABASE", f"sqlite:///{tmp_path / 'gateway.sqlite3'}")
    monkeypatch.setenv("SMALTI_LOG_AUDIT", str(tmp_path / "audit.jsonl"))
    with closing(sqlite_database(tmp_path)) as database:
        assert run(["revisions", "list"]) == 0
        assert "no revisions yet" in capsys.readouterr().out
        gateway = GatewayHarness(database, ModelSpec.load(tiny), write=3)
        gateway.clock.advance(database.time() - gateway.clock())
        one = another_card(card_of(gateway), "1")
        say_hello(gateway, one)
        gateway.create()
        assert run(["revisions", "retire", "1111"]) == 0
        assert capsys.readouterr().out == f"{one.revision} is retired\n"
        assert run(["revisions", "list", "--json"]) == 0
        first, own = json.loads(capsys.readouterr().out)
        assert (first["revision"], first["slots"], first["missing"], first["open_jobs"]) == (
            one.revision,
            8,
            [],
            1,
        )
        assert first["retired"] is not None
        assert own["missing"] == ["encode", "generate"]
        assert run(["revisions", "list"]) == 0
        assert "retired" in capsys.readouterr().out
        assert run(["revisions", "restore", one.revision]) == 0
        events = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
        assert [(each["event"], each["revision"]) for each in events] == [
            ("revision retired", one.revision), ("revision restored", one.revision),
        ]  # fmt: skip
        assert run(["revisions", "retire", "9"]) == 2
        assert "no revision begins with '9'" in capsys.readouterr().err
        gateway.close()
