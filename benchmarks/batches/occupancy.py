"""How full the generator's slots are while two shards are drawn, as a worker draws them: with the shipped model.

`python -m benchmarks.batches.occupancy --prompts 32`
"""

import argparse
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from smalti.batches import BatchPrompt
from smalti.compilation import use_compilation_cache
from smalti.engines.encoder import EncoderEngine
from smalti.engines.generator.engine import DEFAULT_SLOTS, GeneratorEngine
from smalti.queue.consumer import DEFAULT_SHARDS
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.shards.encoding import encode_shard
from smalti.shards.encodings import ShardEncodings
from smalti.shards.generating import generate_shard
from smalti.text.rewording import Rewriter

THINGS = ("cat", "dog", "house", "tree", "fish", "star", "car", "flower")
COLOURS = ("red", "blue", "green", "yellow")


class Occupancy:
    """Adds up the slots in use over all dispatches; an `EngineObserver`."""

    def __init__(self) -> None:
        """Has seen no dispatch yet."""
        self.dispatches = 0
        self._active = 0
        self._all = 0
        self._seconds = 0.0
        self._lock = threading.Lock()

    def stepped(self, seconds: float, active: int, slots: int, tokens: int) -> None:
        """Counts a dispatch."""
        with self._lock:
            self.dispatches += 1
            self._active += active
            self._all += slots
            self._seconds += seconds

    @property
    def share(self) -> float:
        """Share of the slots that were in use."""
        return self._active / max(self._all, 1)

    @property
    def seconds(self) -> float:
        """Time of all dispatches."""
        return self._seconds


def main() -> None:
    """Draws the shards, and prints the share."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=32, help="prompts of a shard")
    parser.add_argument("--slots", type=int, default=DEFAULT_SLOTS, help="slots of the generator")
    arguments = parser.parse_args()
    use_compilation_cache()
    spec = ModelSpec.load(library.find())
    encoder = EncoderEngine.load(spec)
    rewriter = Rewriter.load(spec.folder.words_file)
    shards = [_prompts(spec, number, arguments.prompts) for number in range(DEFAULT_SHARDS)]
    encoded = [encode_shard(prompts, encoder.encode, rewriter) for prompts in shards]
    engine = GeneratorEngine.load(spec, encoder.unconditional, slots=arguments.slots)
    engine.observer = occupancy = Occupancy()
    engine.start()
    engine.ready.wait()

    def draw(prompts: list[BatchPrompt], encodings: ShardEncodings) -> None:
        generate_shard(prompts, encodings, engine, codebook_size=spec.codebook_size)

    try:
        with ThreadPoolExecutor(DEFAULT_SHARDS) as threads:
            list(threads.map(draw, shards, encoded))
    finally:
        engine.close()
    candidates = sum(prompt.candidates for prompts in shards for prompt in prompts)
    figures = {
        "shards": len(shards),
        "candidates": candidates,
        "dispatches": occupancy.dispatches,
        "occupancy": round(occupancy.share, 4),
        "candidates_per_second": round(candidates / occupancy.seconds, 2),
    }
    sys.stdout.write(json.dumps(figures) + "\n")


def _prompts(spec: ModelSpec, shard: int, count: int) -> list[BatchPrompt]:
    """Returns the prompts of a shard, with the defaults of the model."""
    defaults, folder = spec.folder.defaults, spec.folder
    return [
        BatchPrompt(
            row=row,
            id=str(row),
            prompt=f"a {COLOURS[row % len(COLOURS)]} {THINGS[row % len(THINGS)]}",
            seed=row,
            n=defaults.n,
            candidates=defaults.candidates,
            sampling=folder.sampling,
            vary=defaults.vary,
            diversity=defaults.diversity,
        )
        for row in range(shard * count, (shard + 1) * count)
    ]


if __name__ == "__main__":
    main()
