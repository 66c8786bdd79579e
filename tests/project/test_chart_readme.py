"""The chart's README is what values.yaml says, and the schema knows the same values."""

import json
from typing import Any

import yaml

from scripts import chart_readme

SCHEMA = json.loads((chart_readme.CHART / "values.schema.json").read_text(encoding="utf-8"))


def followed(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a part of the schema, or the definition that it names."""
    name = schema.get("$ref")
    return SCHEMA["definitions"][name.rpartition("/")[2]] if name else schema


def test_readme_is_current() -> None:
    assert chart_readme.README.read_text(encoding="utf-8") == chart_readme.page(), (
        "run `python -m scripts.chart_readme`"
    )


def test_schema_is_strict_and_has_every_value() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        assert schema["additionalProperties"] is False, path
        for name, value in values.items():
            assert name in schema["properties"], f"{path}.{name}"
            inner = followed(schema["properties"][name])
            if isinstance(value, dict) and "properties" in inner:
                compare(value, inner, f"{path}.{name}")

    values = yaml.safe_load((chart_readme.CHART / "values.yaml").read_text(encoding="utf-8"))
    compare(values, SCHEMA, "values")
    assert set(SCHEMA["properties"]) == {*values, "global"}


def test_version_of_the_chart_is_that_of_the_project() -> None:
    from scripts.images import version

    chart = yaml.safe_load((chart_readme.CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == version()
    compose = (chart_readme.CHART.parents[1] / "compose" / "compose.yaml").read_text(encoding="utf-8")
    assert compose.count("${TAG:-") == compose.count(f"${{TAG:-{version()}}}") > 0
