"""The commands of the deployment's pages: Helm renders what they install, for the accelerators that they name."""

import shlex
from pathlib import Path
from typing import Final

import pytest
import yaml

from harness.chart import HELMS, Object, helm, objects
from harness.paths import DOCS, ROOT
from tests.project.test_documentation import blocks_of

pytestmark = pytest.mark.deploy

PAGES: Final = (DOCS / "deploy.md", DOCS / "deploy-clusters.md")
RELEASES: Final = ("install", "upgrade")
OF_THE_CLUSTER: Final = {"--create-namespace", "--wait", "--install", "--logs"}
"""Flags that change nothing of what is rendered."""
PRESET: Final = ROOT / "deploy" / "helm" / "smalti" / "values-minimal.yaml"


def helm_commands() -> list[tuple[str, list[str]]]:
    """Returns the commands of the pages that install something, each with its page."""
    found: list[tuple[str, list[str]]] = []
    for page in PAGES:
        for text in blocks_of(page, "sh"):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["helm"] and words[1] in RELEASES:
                    found.append((f"{page.name}: {' '.join(words[:3])} {len(found)}", words))
    return found


COMMANDS: Final = helm_commands()


def as_template(words: list[str]) -> list[str]:
    """Returns the arguments with which Helm renders what a command of a page would install."""
    kept, rest = [], iter(word for word in words[2:] if word not in OF_THE_CLUSTER)
    for word in rest:
        if word == "--timeout":
            next(rest)
        else:
            kept += ["--values", str(PRESET)] if word == "--reuse-values" else [word]
    return ["template", "--kube-version", "1.33", *kept]


def test_pages_install_from_every_preset_that_they_tell_of() -> None:
    used = {Path(word).name for _, words in COMMANDS for word in words if word.endswith(".yaml")}
    assert used == {"values-minimal.yaml", "values-tpu.yaml", "values-nvidia.yaml"}


@pytest.mark.parametrize("program", HELMS)
@pytest.mark.parametrize(("name", "words"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_command_renders(name: str, words: list[str], program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = helm(program, *as_template(words))
    assert done.returncode == 0, f"{name}: {done.stderr}"
    found = objects(done.stdout)
    assert {"Deployment", "Service", "NetworkPolicy"} <= {each["kind"] for each in found}
    assert "REGISTRY/smalti" not in words or any("REGISTRY/smalti" in str(each) for each in found)


def test_accelerators_are_those_of_the_command() -> None:
    """What `--set` says of TPUs and GPUs is where the pods go."""
    rendered = {
        " ".join(words): objects(helm("helm4", *_absolute(as_template(words))).stdout)
        for _, words in COMMANDS
    }
    selectors = {
        command: {value for each in found for value in _pod(each).get("nodeSelector", {}).values()}
        for command, found in rendered.items()
    }
    on_v5e = next(found for command, found in selectors.items() if "tpu-v5-lite-podslice" in command)
    on_l4 = next(found for command, found in selectors.items() if "NVIDIA-L4" in command)
    assert on_v5e == {"tpu-v5-lite-podslice", "1x1"}
    assert on_l4 == {"NVIDIA-L4"}


def _absolute(arguments: list[str]) -> list[str]:
    return [str(ROOT / word) if word.startswith("deploy/") else word for word in arguments]


def _pod(each: Object) -> Object:
    return dict(each.get("spec", {}).get("template", {}).get("spec", {}))


def test_images_and_secrets_of_the_pages_are_those_of_the_chart() -> None:
    page = PAGES[1].read_text(encoding="utf-8")
    version = yaml.safe_load((ROOT / "deploy/helm/smalti/Chart.yaml").read_text(encoding="utf-8"))[
        "appVersion"
    ]
    for service in ("gateway", "web", "encoder", "generator", "decoder", "ranker", "refiner"):
        assert f"smalti/{service}:{version}" in page
    for preset in ("tpu", "nvidia"):
        values = (ROOT / f"deploy/helm/smalti/values-{preset}.yaml").read_text(encoding="utf-8")
        for secret in ("smalti-broker", "smalti-store", "smalti-database", "smalti-web", "smalti-test"):
            assert secret in values
            assert f"create secret generic {secret}" in page
