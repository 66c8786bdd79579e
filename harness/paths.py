"""Where things are in the repository."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
TESTS: Final = ROOT / "tests"
GOLDEN: Final = TESTS / "golden"
"""Reference values, computed once with the original implementations."""
SAMPLES: Final = TESTS / "data"
"""Small inputs: packages, a world, settings of runs, old messages."""
DOCS: Final = ROOT / "docs"
RUNS: Final = ROOT / "smalti" / "training" / "runs"
"""The settings that the shipped model was trained with."""
