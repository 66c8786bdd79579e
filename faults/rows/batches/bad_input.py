"""Inputs that cannot be used."""

from typing import Final

from faults.matrix import Trial, row
from faults.rows.batches.settings import SETTINGS, prompts_of
from faults.system import PATIENCE
from harness.waiting import wait_until

_LINE: Final = 999


@row(
    "37",
    "an input whose line 999 is not UTF-8; one with such a line, and `skip_invalid`",
    "one line names the input and the line, and no object is left; with `skip_invalid` all others are drawn",
    settings=SETTINGS,
)
def bad_input(trial: Trial) -> None:
    """Submits a thousand lines of which one is not UTF-8."""
    batches = trial.batches
    prompts = prompts_of("row 37", 1000)
    lines = [prompt.encode() for prompt in prompts]
    lines[_LINE - 1] = b"not UTF-8: \xff"
    refused = batches.submit("row 37 refused", prompts, content=b"\n".join(lines) + b"\n", shard_prompts=16)
    trial.expect_batches("failed", refused)
    said = refused.end.error.message if refused.end else ""
    trial.expect("input" in said and f"line {_LINE}" in said, f"it failed with {said!r}")
    trial.expect(not batches.listed(refused), "the batch has files")
    wait_until(lambda: not batches.left_over(refused), PATIENCE)
    few = [*prompts_of("row 37 few", 9)]
    few_lines = [prompt.encode() for prompt in few]
    few_lines[4] = b"\xff"
    skipped = batches.submit(
        "row 37 skipped", few, content=b"\n".join(few_lines) + b"\n", invalid=[4], skip_invalid=True
    )
    trial.expect_batches("succeeded", skipped)
    trial.notes.append(f"the input was refused with: {said}")
