"""The encodings of a shard's prompts, and the file that they are stored in."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from smalti.batches import BatchPrompt
from smalti.engines.encoding import Encoding
from smalti.errors import DamagedObjectError
from smalti.registry.spec import ModelSpec
from smalti.shards.readings import Reading
from smalti.shards.tensors import TensorsFile, tensors_bytes


@dataclass(frozen=True, kw_only=True)
class ShardEncodings:
    """What the encoder has made of the prompts of a shard."""

    readings: tuple[Reading, ...]
    """How the model reads each prompt."""
    encodings: Mapping[str, Encoding]
    """The encodings by their texts; equal texts of the shard share one."""

    def to_bytes(self) -> bytes:
        """Returns the file: the states at the positions of text one after the other, without the padding."""
        each = list(self.encodings.values())
        lengths = np.array([encoding.mask.sum() for encoding in each], np.int32)
        states = [encoding.states[:length] for encoding, length in zip(each, lengths, strict=True)]
        joined = np.concatenate(states, dtype=np.float32) if states else np.zeros((0, 0), np.float32)
        return tensors_bytes(self.readings, {"states": joined, "lengths": lengths})

    @classmethod
    def parse(
        cls, key: str, content: bytes, prompts: Sequence[BatchPrompt], spec: ModelSpec
    ) -> "ShardEncodings":
        """Reads the file.

        Args:
            key: what errors call it.
            content: the file.
            prompts: the prompts of the shard.
            spec: the model.

        Raises:
            DamagedObjectError: it is not valid, or does not fit the prompts or the model.
        """
        config, file = spec.transformer, TensorsFile(key, content, prompts)
        texts = distinct_texts(prompts, file.readings)
        lengths = file.tensor("lengths", (np.int32,), (len(texts),))
        width = config.d_model if texts else 0
        states = file.tensor("states", (np.float32,), (int(lengths.sum()), width))
        is_valid = ((lengths >= 1) & (lengths <= config.max_text_length)).all() and np.isfinite(states).all()
        if not is_valid:
            raise DamagedObjectError(key, "its lengths or states are invalid")
        parts = np.split(states, np.cumsum(lengths)[:-1]) if texts else []
        return cls(
            readings=file.readings,
            encodings={
                text: _padded(part, config.max_text_length) for text, part in zip(texts, parts, strict=True)
            },
        )


def distinct_texts(prompts: Sequence[BatchPrompt], readings: Iterable[Reading]) -> list[str]:
    """Returns what is encoded for a shard, in the order of the prompts, each text once."""
    return list(
        dict.fromkeys(
            text for prompt, reading in zip(prompts, readings, strict=True) for text in reading.texts(prompt)
        )
    )


def _padded(states: np.ndarray, length: int) -> Encoding:
    """Returns an encoding with zeros for its padding, which attention gives a weight of exactly 0."""
    mask = np.zeros(length, np.int32)
    mask[: len(states)] = 1
    padding = np.zeros((length - len(states), states.shape[1]), np.float32)
    return Encoding(np.concatenate([states, padding]), mask)
