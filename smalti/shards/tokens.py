"""The image tokens of a shard's candidates, and the file that they are stored in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from smalti.batches import BatchPrompt
from smalti.errors import DamagedObjectError
from smalti.registry.spec import ModelSpec
from smalti.shards.readings import Reading
from smalti.shards.tensors import TensorsFile, tensors_bytes


@dataclass(frozen=True, kw_only=True)
class ShardTokens:
    """What the generator has made of the prompts of a shard."""

    readings: tuple[Reading, ...]
    """How the model reads each prompt."""
    tokens: tuple[Int[np.ndarray, "candidates tokens"] | None, ...]
    """The tokens of each prompt's candidates; None for a prompt with a problem."""

    def to_bytes(self) -> bytes:
        """Returns the file: the tokens of all candidates one after the other, as small as their values allow."""
        there = [tokens for tokens in self.tokens if tokens is not None]
        joined = np.concatenate(there) if there else np.zeros((0, 0), np.int32)
        small = joined.max(initial=0) <= np.iinfo(np.uint16).max
        return tensors_bytes(self.readings, {"tokens": joined.astype(np.uint16 if small else np.int32)})

    @classmethod
    def parse(
        cls, key: str, content: bytes, prompts: Sequence[BatchPrompt], spec: ModelSpec
    ) -> "ShardTokens":
        """Reads the file; raises `DamagedObjectError` as `ShardEncodings.parse` does."""
        file = TensorsFile(key, content, prompts)
        counts = [
            prompt.candidates if reading.problem is None else 0
            for prompt, reading in zip(prompts, file.readings, strict=True)
        ]
        width = spec.tokens if any(counts) else 0
        joined = file.tensor("tokens", (np.uint16, np.int32), (sum(counts), width)).astype(np.int32)
        # The transformer that has drawn them may be that of another model, which uses more of the codebook.
        if joined.min(initial=0) < 0 or joined.max(initial=0) >= spec.vqgan.n_embed:
            raise DamagedObjectError(key, "contains a token outside the model's codebook")
        parts = np.split(joined, np.cumsum(counts)[:-1])
        return cls(
            readings=file.readings,
            tokens=tuple(
                None if reading.problem is not None else part
                for reading, part in zip(file.readings, parts, strict=True)
            ),
        )
