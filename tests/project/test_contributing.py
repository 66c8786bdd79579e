"""Contributors and CI run the same commands, on the Python versions that the package supports."""

import re
import tomllib

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from harness.paths import ROOT
from smalti import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHECKS = ("ruff check", "ruff format", "mypy")


def recipe(target: str) -> list[str]:
    """Returns the commands of a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert found, target
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in found[1].splitlines()]


def test_pre_commit_runs_the_commands_of_make_check() -> None:
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in configuration["repos"] for hook in repository["hooks"]]
    assert [repository["repo"] for repository in configuration["repos"]] == ["local"]
    assert all(hook["language"] == "system" and hook["pass_filenames"] is False for hook in hooks)
    entries = [hook["entry"] for hook in hooks]
    assert set(entries) <= set(recipe("check"))
    for check in CHECKS:
        assert any(entry.startswith(f".venv/bin/{check}") for entry in entries), check


@pytest.mark.parametrize("marks", [set(), {"slow"}, {"deploy"}, {"slow", "deploy"}])
def test_every_test_is_run_by_a_command(marks: set[str]) -> None:
    """A test with these marks, and perhaps others, is chosen by one command, which names no others."""
    choices = {}
    for target in ("test", "test-slow", "deploy-check"):
        (command,) = (line for line in recipe(target) if "-m " in line)
        found = re.search(r'-m "([a-z -]+)"( \S+)?$', command)
        assert found, command
        choices[target] = eval(found[1], {}, {name: name in marks for name in ("slow", "deploy")})
    assert sum(choices.values()) == 1, choices
    # The last command looks into one folder only.
    elsewhere = [path for path in (ROOT / "tests").rglob("*.py") if path.parent != ROOT / "tests" / "deploy"]
    assert not [
        path for path in elsewhere if re.search(r"\bmark\.deploy\b", path.read_text(encoding="utf-8"))
    ]


def test_workflow_runs_the_ci_script_on_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    claimed = [
        found[1]
        for line in PROJECT["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    ]
    assert job["strategy"]["matrix"]["python"] == claimed
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(version) for version in claimed)


def test_changelog_has_the_version_of_the_package() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == __version__
