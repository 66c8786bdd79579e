"""The documentation is true: the README's commands work, and the files, names and tests that pages name exist."""

import re
import shlex
from pathlib import Path

import pytest

from harness.paths import ROOT
from smalti.cli import run
from smalti.queue import BrokerSettings
from smalti.queue.broker.queues import all_queues

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")})
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


QUEUES = all_queues(BrokerSettings())
"""Queues have dotted names too."""
OTHER_QUEUE = re.compile(r"smalti\.[a-z]+(\.[0-9a-f]{12})?\.(interactive|batch)(\.held(\.\d+)?)?")
"""Queues that are declared when they are needed."""


def blocks_of(path: Path, language: str) -> list[str]:
    """Returns the blocks of code of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """Returns the commands of a file's shell blocks, without their comments."""
    lines = [line for block in blocks_of(path, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_make_targets_of_the_readme_are_run_by_ci() -> None:
    in_ci = {
        words[0]: words[1:]
        for words in (shlex.split(line, comments=True) for line in CI.splitlines())
        if words
    }
    targets = {target for words in commands(ROOT / "README.md") if words[0] == "make" for target in words[1:]}
    assert targets
    assert targets <= set(in_ci["make"])


def test_smalti_commands_of_the_readme_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    others = [words for words in commands(ROOT / "README.md") if words[0] != "make"]
    assert others
    for words in others:
        assert words[0] == ".venv/bin/smalti"
        assert run(words[1:]) == 0
    output = capsys.readouterr().out
    assert "9 of 16 drawn" in output
    assert "3 of 3 prompts drawn" in output
    assert len(list(tmp_path.glob("pictures/*.png"))) == 10


def test_files_that_pages_name_exist() -> None:
    """Paths of the repository in backticks; `tests/` and `protos/` may be left out."""
    named = re.compile(r"`((?:smalti|services|tests|harness|faults|scripts|protos)/[\w./-]+(?:\.\w+|/))`")
    gone = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        for name in named.findall(page.read_text(encoding="utf-8"))
        if Path(name).suffix in {"", ".py", ".proto", ".toml", ".txt", ".json", ".binpb"}
        and not any((root / name).exists() for root in (ROOT, ROOT / "tests", ROOT / "protos"))
    ]
    assert gone == []


def test_names_of_the_package_that_pages_use_exist() -> None:
    """The module of a dotted name must exist, and its text must contain the first part after the module."""
    named = re.compile(r"(?:\b(?:from|import) |`)(smalti(?:\.\w+){2,})")
    gone = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        if page.name != "CHANGELOG.md"  # It contains old names.
        for name in named.findall(page.read_text(encoding="utf-8"))
        if not is_there(name) and name not in QUEUES and not OTHER_QUEUE.fullmatch(name)
    ]
    assert gone == []


def is_there(dotted: str) -> bool:
    """Returns whether the sources have a module of this name, or a module that mentions the part after its name."""
    parts = dotted.split(".")
    depth = next((depth for depth in range(len(parts), 0, -1) if source_of(parts[:depth]) is not None), 0)
    source = source_of(parts[:depth])
    return source is not None and all(
        re.search(rf"\b{part}\b", source.read_text(encoding="utf-8")) for part in parts[depth:][:1]
    )


def source_of(parts: list[str]) -> Path | None:
    """Returns the file of a module, if there is one."""
    path = ROOT.joinpath(*parts)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
