"""Measures how much worse pictures are with `SMALTI_GENERATOR_INT8`, with the judge of an evaluation.

    python -m benchmarks.int8 --judge runs/judge --data data/shipped                             prints the table
    python -m benchmarks.int8 --judge runs/judge --data data/shipped --write docs/performance.md  also writes it there

Each setting draws the same prompts with the same seeds, in a process of its own. Results are kept by setting, so an
interrupted run goes on where it was. A difference is paired: that of each prompt's shares, with a bootstrap interval
over the prompts.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.report import table_lines, write_between
from smalti.errors import SmaltiError
from smalti.training.evaluation.scoring import Interval, bootstrap

SETTINGS = ("", "weights", "cache", "cache,weights")
VARIABLE = "SMALTI_GENERATOR_INT8"
BEGIN, END = "<!-- int8: written by python -m benchmarks.int8 -->", "<!-- end of int8 -->"
COLUMNS = (
    *("int8", "right, %", "difference, points", "right of the best 9, %", "difference, points"),
    *("score by CLIP, difference", "tokens as without, %"),
)
BEST = 9
SLOTS = 64


@dataclass(frozen=True)
class Drawn:
    """What one setting has drawn, by prompt and candidate."""

    right: np.ndarray
    """Whether everything is right."""
    scores: np.ndarray
    """Scores by CLIP."""
    tokens: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `draw` has kept."""
        with np.load(path) as kept:
            return cls(kept["right"], kept["scores"], kept["tokens"])

    def shares(self) -> np.ndarray:
        """Returns each prompt's share of right pictures."""
        shares: np.ndarray = self.right.mean(1)
        return shares

    def best_shares(self) -> np.ndarray:
        """Returns each prompt's share of right pictures among the best by CLIP."""
        best = np.argsort(-self.scores, axis=1, kind="stable")[:, :BEST]
        shares: np.ndarray = np.take_along_axis(self.right, best, 1).mean(1)
        return shares


def draw(judge: Path, data: Path, prompts_per_kind: int, out: Path) -> None:
    """Draws and judges all prompts with the setting of this process's environment."""
    from smalti.compilation import use_compilation_cache
    from smalti.models.vqgan import VQGANConfig
    from smalti.pipeline import Pipeline
    from smalti.registry import library
    from smalti.training.batches.sources import require_world
    from smalti.training.data.world.composition import World
    from smalti.training.data.world.lookalikes import acceptable_colours
    from smalti.training.evaluation.candidates import generate_candidates
    from smalti.training.evaluation.questions import kinds_of, questions
    from smalti.training.evaluation.scoring import Scorer
    from smalti.training.trainers.judge import load_judge

    use_compilation_cache()
    folder = library.find(None)
    world = World.load(require_world(data), VQGANConfig.load(folder.vqgan_folder).resolution)
    scorer = Scorer(load_judge(judge, world.description), world, acceptable_colours(world))
    right, scores, tokens = [], [], []
    with Pipeline.load(folder.path, slots=SLOTS) as pipeline:
        for kind in kinds_of(world):
            asked, seeds = questions(world, kind, prompts_per_kind), range(1, prompts_per_kind + 1)
            count = folder.defaults.candidates
            for found in generate_candidates(pipeline, asked, folder.sampling, count, seeds):
                right.append(scorer(found.question, found.pixels).everything)
                scores.append(found.scores)
                tokens.append(found.tokens)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, right=np.array(right), scores=np.array(scores), tokens=np.array(tokens))
    part.replace(out)


def table(drawn: Mapping[str, Drawn]) -> list[str]:
    """Returns the lines of the table; the first setting is what the others are compared with."""
    plain = drawn[SETTINGS[0]]

    def cells(setting: str, found: Drawn) -> tuple[str, ...]:
        all_shares, best_shares = found.shares(), found.best_shares()
        shown = f"{100 * all_shares.mean():.1f}", f"{100 * best_shares.mean():.1f}"
        if found is plain:
            return "none", shown[0], "", shown[1], "", "", ""
        return (
            f"`{setting}`",
            shown[0],
            _points(bootstrap(100 * (all_shares - plain.shares()))),
            shown[1],
            _points(bootstrap(100 * (best_shares - plain.best_shares()))),
            _points(bootstrap((found.scores - plain.scores).mean(1)), digits=3),
            f"{100 * (found.tokens == plain.tokens).mean():.1f}",
        )

    return table_lines(COLUMNS, (cells(setting, found) for setting, found in drawn.items()))


def _points(interval: Interval, digits: int = 1) -> str:
    return f"{interval.value:+.{digits}f} ({interval.low:+.{digits}f} to {interval.high:+.{digits}f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws what is not kept, and prints or writes the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.int8",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--judge", type=Path, required=True, help="run of the judge")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--prompts-per-kind", type=int, default=20, help="number of prompts of each kind")
    parser.add_argument("--kept", type=Path, default=Path("build/int8"), help="folder of the results")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this page")
    parser.add_argument("--draw", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.prompts_per_kind < 1:
        parser.error(f"--prompts-per-kind: {options.prompts_per_kind} must be at least 1")
    try:
        if options.draw:
            draw(options.judge, options.data, options.prompts_per_kind, options.draw)
            return 0
        drawn: dict[str, Drawn] = {}
        for setting in SETTINGS:
            name = f"{setting.replace(',', '-') or 'none'}-{options.prompts_per_kind}.npz"
            kept = options.kept / name
            if not kept.exists():
                subprocess.run(
                    [
                        sys.executable,
                        "-m",
                        "benchmarks.int8",
                        *(arguments or sys.argv[1:]),
                        "--draw",
                        str(kept),
                    ],
                    env={**os.environ, VARIABLE: setting},
                    check=True,
                )
            drawn[setting] = Drawn.load(kept)
        lines = table(drawn)
        print("", *lines, sep="\n")
        if options.write:
            write_between(options.write, ["", *lines, ""], begin=BEGIN, end=END)
    except SmaltiError as error:
        print(f"benchmarks.int8: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
