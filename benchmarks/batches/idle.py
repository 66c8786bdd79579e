"""The real services, with engines that do no work: `python -m benchmarks.batches.idle encoder`.

Everything else is done: messages, objects, PNG files, tars. So what is measured is what the system costs beside its
engines.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.engines.encoder import EncoderEngine
from smalti.engines.encoding import Encoding
from smalti.engines.generator.engine import DEFAULT_SLOTS, GeneratorEngine
from smalti.engines.generator.requests import Candidate
from smalti.registry.spec import ModelSpec

TEXT_TOKENS: Final = 8
"""Tokens of each prompt."""
PICTURES_TOGETHER: Final = 16


class IdleEncoder(EncoderEngine):
    """Encodes every prompt as zeros."""

    def __init__(self, spec: ModelSpec) -> None:
        """Makes the encoding."""
        config = spec.transformer
        mask = np.zeros(config.max_text_length, np.int32)
        mask[:TEXT_TOKENS] = 1
        self._encoding = Encoding(np.zeros((config.max_text_length, config.d_model), np.float32), mask)

    @classmethod
    def load(cls, spec: ModelSpec) -> "IdleEncoder":  # noqa: D102
        return cls(spec)

    def is_cut(self, prompt: str) -> bool:  # noqa: D102
        return False

    def count_tokens(self, prompt: str) -> int:  # noqa: D102
        return TEXT_TOKENS

    def encode(self, prompt: str) -> Encoding:  # noqa: D102
        return self._encoding

    @property
    def unconditional(self) -> Encoding:  # noqa: D102
        return self._encoding


class IdleBatch:
    """A batch whose candidates are finished by one step; a `Batch`."""

    def __init__(self, spec: ModelSpec, slots: int) -> None:
        """Makes the tokens."""
        self.slots = slots
        self.steps_per_dispatch = self.image_length = spec.tokens
        self._tokens = np.zeros((slots, spec.tokens), np.int32)

    def warm_up(self, *, everything: bool) -> None:  # noqa: D102
        pass

    def prefill(self, encoding: Encoding) -> Any:  # noqa: D102
        return encoding

    def insert(self, prefix: Any, slots: Sequence[int], candidates: Sequence[Candidate]) -> None:  # noqa: D102
        pass

    def release(self, slots: Sequence[int]) -> None:  # noqa: D102
        pass

    def step(self) -> np.ndarray:  # noqa: D102
        return self._tokens

    def check(self) -> None:  # noqa: D102
        pass

    def reset(self) -> None:  # noqa: D102
        pass


class IdleGenerator(GeneratorEngine):
    """The real loop around a batch that does no work."""

    @classmethod
    def load(  # noqa: D102
        cls, spec: ModelSpec, unconditional: Encoding, *, slots: int = DEFAULT_SLOTS, **options: Any
    ) -> "IdleGenerator":
        return cls(IdleBatch(spec, slots), **options)


class IdleDecoder(DecoderEngine):
    """Decodes black pictures."""

    @classmethod
    def load(cls, spec: ModelSpec) -> "IdleDecoder":  # noqa: D102
        engine = super().load(spec)
        return cls(engine.vqgan, batch_size=PICTURES_TOGETHER)

    def decode(self, tokens: np.ndarray) -> np.ndarray:  # noqa: D102
        side = self.vqgan.config.resolution
        return np.zeros((len(tokens), side, side, 3), np.uint8)


def idle_ranker() -> Any:
    """Returns the class of a ranker that scores every picture with the same number."""
    from smalti.engines.ranker import RankerEngine
    from smalti.models.clip import Ranking

    class IdleRanker(RankerEngine):
        def look(self, prompt: str, pictures: Sequence[Image.Image]) -> Ranking:
            scores = np.zeros(len(pictures), np.float32)
            return Ranking(scores, np.ones((len(pictures), 1), np.float32))

    return IdleRanker


def main(name: str) -> int:
    """Runs a service until it is stopped; returns the exit code."""
    module = importlib.import_module(f"smalti.services.{name}.service")
    match name:
        case "encoder":
            module.EncoderEngine = IdleEncoder  # type: ignore[attr-defined]
        case "generator":
            module.GeneratorEngine = IdleGenerator  # type: ignore[attr-defined]
        case "decoder":
            module.DecoderEngine = IdleDecoder  # type: ignore[attr-defined]
        case "ranker":
            module.RankerEngine = idle_ranker()  # type: ignore[attr-defined]
        case _:
            raise ValueError(f"no such stage: {name}")
    run = importlib.import_module(f"smalti.services.{name}.__main__").main
    return int(run())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
