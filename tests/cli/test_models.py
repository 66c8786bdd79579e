"""`smalti models`, `verify`, `import`, `pull` and `push`."""

import json
import re
import shutil
from pathlib import Path

import pytest

from harness.servers import S3Server
from smalti.cli import run
from smalti.registry.folder import ModelFolder
from smalti.registry.library import SHIPPED, find
from smalti.testing.words import SMALL_WORLD
from smalti.text.vocabulary import Words


@pytest.fixture
def models(tiny: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of models, which holds one model."""
    folder = tmp_path / "models"
    shutil.copytree(tiny.path, folder / "mosaic")
    monkeypatch.setenv("SMALTI_MODELS", str(folder))
    monkeypatch.setenv("SMALTI_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    return folder


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must fail; returns its one line on standard error."""
    assert run([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return str(line)


def test_models_are_listed(models: Path, tiny: ModelFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "broken").mkdir()
    (models / "broken" / "model.json").write_text("{")
    assert run(["models"]) == 0
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["name", "revision", "licence", "size", "where"]
    by_name = {row[0]: row[1:] for row in rows}
    size = sum(path.stat().st_size for path in tiny.path.rglob("*") if path.name not in ("model.json",)) / 1e6
    assert by_name["mosaic"][:2] == [tiny.revision[:19], "Apache-2.0"]
    assert float(by_name["mosaic"][2]) == pytest.approx(size, abs=0.1)
    assert by_name["mosaic"][3:] == ["MB", str(models / "mosaic")]
    assert " ".join(by_name["broken"]).startswith(f"{models}/broken/model.json: cannot be read as JSON")
    shipped = [path.parent.name for path in SHIPPED.glob("*/model.json")]
    assert sorted(by_name) == sorted(["mosaic", "broken", *shipped])
    assert by_name[shipped[0]][-3:] == ["comes", "with", "Smalti"]


def test_models_are_listed_as_json(
    models: Path, tiny: ModelFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / "broken").mkdir()
    (models / "broken" / "model.json").write_text("{")
    assert run(["models", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["mosaic"] == {
        "name": "mosaic",
        "path": str(models / "mosaic"),
        "shipped": False,
        "revision": tiny.revision,
        "licence": "Apache-2.0",
        "size": tiny.size,
        "description": tiny.manifest.description,
        "source": "",
    }
    assert "cannot be read as JSON" in entries["broken"]["problem"]


def test_words_of_a_model(worded: ModelFolder, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(worded.path, models / "worded")
    for place in ("worded", models / "worded"):
        assert run(["models", "--words", str(place)]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith("worded knows 16 things")
        for word in (*SMALL_WORLD.things, *SMALL_WORLD.colours, *SMALL_WORLD.styles, *SMALL_WORLD.sizes):
            assert word in shown
        assert "white, red, yellow, blue, gray" in shown
        assert f"It replaces {len(SMALL_WORLD.synonyms) + len(SMALL_WORLD.neighbours)} other words" in shown
    assert run(["models", "worded", "--words", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "worded"
    assert Words.model_validate(told["words"]) == SMALL_WORLD


def test_words_of_a_model_that_reads_any_text(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--words", "mosaic"]) == 0
    assert capsys.readouterr().out == "tiny reads any text; it has no list of words\n"
    assert run(["models", "--words", "mosaic", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"model": "tiny", "words": None}


def test_words_without_a_model_are_those_of_the_default(
    worded: ModelFolder, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMALTI_MODEL", str(worded.path))
    assert run(["models", "--words"]) == 0
    assert capsys.readouterr().out.startswith("worded knows 16 things")
    monkeypatch.delenv("SMALTI_MODEL")
    assert run(["models", "--words"]) == 0
    assert capsys.readouterr().out.startswith(find().name)


def test_words_that_cannot_be_listed(
    worded: ModelFolder, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(worded.path, models / "worded")
    (models / "worded" / "words.json").write_text('{"things": []}')
    assert "words.json: things: tuple should have at least 1 item" in complaint(
        capsys, "models", "--words", "worded"
    )
    assert "there is no model worde. Did you mean worded?" in complaint(capsys, "models", "--words", "worde")
    assert "MODEL: worded: add --words to list its words: smalti models --words worded" in complaint(
        capsys, "models", "worded"
    )


def test_verify(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("mosaic", models / "mosaic"):
        assert run(["verify", str(place)]) == 0
        assert "no problems" in capsys.readouterr().out
    (models / "mosaic" / "bart" / "merges.txt").unlink()
    (models / "mosaic" / "extra").touch()
    assert run(["verify", "mosaic"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{models}/mosaic/bart/merges.txt: missing",
        f"{models}/mosaic/extra: not listed in model.json",
    ]
    assert run(["verify", "mosaic", "--files", "--revision", "sha256:0"]) == 1
    revised, *others = capsys.readouterr().out.splitlines()
    assert revised.startswith(f"{models}/mosaic: revision: is sha256:")
    assert others == lines
    assert "there is no model mosiac. Did you mean mosaic?" in complaint(capsys, "verify", "mosiac")


def test_import(models: Path, tiny: ModelFolder, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--bart", tiny.bart_folder, "--vqgan", tiny.vqgan_folder, "--clip", tiny.path / "clip"]
    words = ["import", "again", *folders, "--licence", "MIT", "--description", "Small.", "--source", "here"]
    assert run([str(word) for word in words]) == 0
    made = ModelFolder.open(models / "again")
    assert capsys.readouterr().out == f"again: {made.revision} in {models / 'again'}\n"
    assert (made.manifest.licence, made.manifest.description, made.manifest.source) == (
        "MIT",
        "Small.",
        "here",
    )
    assert "again is not empty" in complaint(capsys, *words)
    assert "no such folder" in complaint(capsys, *words, "--bart", models / "none", "--out", models / "other")


def test_pull(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "not in the cache; pull it once without offline mode"
    assert message in complaint(capsys, "pull", "somebody/mosaic", "--offline")
    assert "must have the form owner/name" in complaint(capsys, "pull", "some body", "--offline")


def test_push_and_pull_with_a_store(
    models: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMALTI_STORE_URL", s3.url)
    assert run(["push", "mosaic", "s3://weights/of-tests"]) == 0
    said = re.fullmatch(
        r"tiny: sha256:([0-9a-f]{64}) in s3://weights/of-tests, .* sent\n", capsys.readouterr().out
    )
    assert said
    arguments = ("pull", "s3://weights/of-tests", "--name", "again", "--sha256", said[1])
    revision = ModelFolder.open(models / "mosaic").revision
    for received in (r"[\d.]+ [kM]B", "0 bytes"):
        assert run([*arguments]) == 0
        expected = f"again: {revision} in {models / 'again'}, {received} received\n"
        assert re.fullmatch(expected, capsys.readouterr().out)
    missing = complaint(capsys, "pull", "s3://weights", "--sha256", said[1])
    assert missing == (
        f"smalti: sha256: the store has no model {said[1]} (no object models/{said[1]}.json); `smalti push` stores one"
    )


def test_wrong_sources_and_targets(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "TARGET: must be s3://BUCKET/PREFIX, got 'weights'" in complaint(
        capsys, "push", "mosaic", "weights"
    )
    wrong = (
        (("s3://weights",), "sha256: must be the 64 digits that `smalti push` has printed"),
        (("s3://weights", "--sha256", "sha256:12"), "sha256: must be the 64 digits"),
        (("s3://weights", "--revision", "v1"), "revision: is for the hub; give --sha256"),
        (("somebody/mosaic", "--sha256", "0" * 64), "sha256: is for s3:// addresses; give --revision"),
    )
    for arguments, problem in wrong:
        assert problem in complaint(capsys, "pull", *arguments)
