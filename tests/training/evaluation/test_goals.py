"""The goals of an evaluation, and the figures of an earlier one beside them."""

from harness.paths import ROOT
from smalti.training.evaluation.goals import GOALS, goals_table, load_earlier


def test_figures_stand_beside_their_goals() -> None:
    now = {"size": 30 * 2**20, "judge": {"tokens": {"thing": 0.97}}}
    earlier = {"size": 12 * 2**20, "judge": {"tokens": "another form"}}
    rows = {line.split(" | ")[0].strip("| "): line for line in goals_table(now, earlier)}
    assert rows["size of the model"].endswith("| at most 24 MiB | 12.0 MiB | 30.0 MiB | no |")
    judged = next(row for name, row in rows.items() if name.startswith("things that the judge"))
    assert judged.endswith("| at least 96 % | – | 97.0 % | yes |")
    assert rows["wobble in flat areas"].endswith("| at most 1 | – | – | – |")
    assert "before" not in goals_table(now, None)[0]


def test_the_baseline_of_the_shipped_model_is_kept() -> None:
    earlier = load_earlier(ROOT / "docs" / "quality-pictograms-1.json")
    assert earlier["model"] == "pictograms"
    assert GOALS[0].find(earlier) == 100
