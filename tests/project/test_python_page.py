"""The page on the Python API is true: each of its examples runs, and its tree of errors is the real one."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.image_service import ServedGateway, served_gateway
from harness.paths import DOCS
from smalti import errors
from smalti.client import BatchOptions, GenerateOptions
from smalti.parameters import SamplingParameters
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder

PAGE = (DOCS / "python.md").read_text(encoding="utf-8")
EXAMPLES = list(re.finditer(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def gateway() -> Iterator[ServedGateway]:
    with served_gateway() as served:
        yield served


def test_examples_run_one_after_the_other(
    tiny: ModelFolder, gateway: ServedGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share their names, as in a session of a reader who tries them in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SMALTI_MODEL", str(tiny.path))
    monkeypatch.setenv("SMALTI_SERVER", gateway.address)
    names: dict[str, object] = {}
    for example in EXAMPLES:
        # Lines of a traceback are those of the page.
        above = "\n" * PAGE.count("\n", 0, example.start(1))
        exec(compile(above + example[1], str(DOCS / "python.md"), "exec"), names)
    for value in names.values():
        if isinstance(value, Pipeline):
            value.generator.close()
    assert len(EXAMPLES) >= 10
    assert len(list(tmp_path.glob("*.png"))) >= 5


def test_tree_of_errors_is_that_of_the_module() -> None:
    (tree,) = re.findall(r"^```\n(SmaltiError\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert tree in (errors.__doc__ or "")
    assert tree.count("\n") == sum(
        issubclass(getattr(errors, name), errors.SmaltiError) for name in errors.__all__
    )


def test_every_option_and_parameter_is_named() -> None:
    client = PAGE.partition("\n## Client\n")[2]
    missing = [
        name
        for name in {**GenerateOptions.__annotations__, **BatchOptions.__annotations__}
        if f"`{name}`" not in client
    ]
    assert set(missing) == set(SamplingParameters.model_fields)
    table = PAGE.partition("\n## Sampling parameters\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(SamplingParameters.model_fields)
