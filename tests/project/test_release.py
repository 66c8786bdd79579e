"""What may be released, with which notes; and the workflow that does it on a tag."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from harness.paths import ROOT
from scripts import images, release

SECTIONS = (
    "# Changelog",
    "## [Unreleased]",
    "## [1.2.0] - 2026-01-01",
    "### Added",
    "* A thing.",
    "## [1.1.0]",
    "* Old.",
)
CHANGELOG = "\n\n".join(SECTIONS) + "\n"
WORKFLOW = ROOT / ".github" / "workflows" / "release.yaml"


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    chart = tmp_path / release.CHART / "Chart.yaml"
    chart.parent.mkdir(parents=True)
    chart.write_text("version: 1.2.0\nappVersion: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(root: Path) -> None:
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--allow-empty", "-m", "A change")


def test_clean_tree_with_notes_can_be_released_before_and_after_it_is_tagged(repository: Path) -> None:
    assert release.find_problem(repository, "1.2.0") == ""
    git(repository, "tag", "v1.2.0")
    assert release.find_problem(repository, "1.2.0") == ""
    assert release.notes(repository, "1.2.0") == "### Added\n\n* A thing.\n"


def test_what_is_not_ready_is_refused_with_the_remedy(repository: Path) -> None:
    (repository / "new.py").touch()
    assert release.find_problem(repository, "1.2.0") == "new.py is not committed; commit or remove it"
    commit(repository)
    line = "CHANGELOG.md has no section [1.3.0]; move what is under Unreleased to one"
    assert release.find_problem(repository, "1.3.0") == line
    assert release.find_problem(repository, "1.1.0") == "deploy/helm/smalti/Chart.yaml: version must be 1.1.0"
    (repository / "CHANGELOG.md").write_text(CHANGELOG.replace("[Unreleased]\n", "[Unreleased]\n\n* More.\n"))
    commit(repository)
    assert release.find_problem(repository, "1.2.0").startswith("CHANGELOG.md has changes under Unreleased")


def test_tag_of_another_commit_or_version_is_refused(repository: Path) -> None:
    git(repository, "tag", "v1.2.0")
    commit(repository)
    assert release.find_problem(repository, "1.2.0").startswith("the tag v1.2.0 is at another commit, ")
    git(repository, "tag", "--delete", "v1.2.0")
    git(repository, "tag", "v2.0.0")
    line = "the commit has the tag v2.0.0, but __version__ is 1.2.0"
    assert release.find_problem(repository, "1.2.0") == line


def test_checksums_are_signed_and_a_change_is_found(tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (tmp_path / "signers").write_text(f"smalti {key.with_suffix('.pub').read_text()}")
    folder = tmp_path / "dist"
    folder.mkdir()
    (folder / "a.whl").write_bytes(b"a wheel")
    release.sign(folder, key)
    check = ["ssh-keygen", "-Y", "verify", "-f", "../signers", "-I", "smalti", "-n", release.SIGNED_AS]

    def verified() -> bool:
        with (folder / "SHA256SUMS").open() as sums:
            command = [*check, "-s", "SHA256SUMS.sig"]
            return subprocess.run(command, cwd=folder, stdin=sums, capture_output=True).returncode == 0

    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0
    assert verified()
    (folder / "SHA256SUMS").write_text("0" * 64 + "  a.whl\n")
    assert not verified()


def test_workflow_makes_the_release_on_a_tag_for_both_processors() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key "on" as true.
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    runners = {each["platform"]: each["runner"] for each in jobs["build"]["strategy"]["matrix"]["include"]}
    assert runners == {"amd64": "ubuntu-24.04", "arm64": "ubuntu-24.04-arm"}
    for job in jobs.values():
        for needed in [job.get("needs")] if isinstance(job.get("needs"), str) else job.get("needs", []):
            assert needed in jobs
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
            # What others can choose, such as the name of a tag, gets into a script as a variable only.
            assert "${{ github" not in step.get("run", "")
    commands = "\n".join(step.get("run", "") for job in jobs.values() for step in job["steps"])
    assert "make release" in commands
    services = jobs["publish"]["env"]["SERVICES"].split()
    assert sorted(services) == sorted(images.SERVICES)
