"""The folders of the repository."""

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
TESTS: Final = ROOT / "tests"
GOLDEN: Final = TESTS / "golden"
"""Golden values, computed once with the original implementations."""
SAMPLES: Final = TESTS / "data"
"""Small inputs: packages, a world, training configurations, old messages."""
DOCS: Final = ROOT / "docs"
RUNS: Final = ROOT / "smalti" / "training" / "runs"
"""The training configurations of the shipped model."""
