"""Prompts of shards, and a shard that is drawn in one process."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smalti.batches import BatchPrompt, PictureFormat, ShardFile
from smalti.engines.encoding import Encoding
from smalti.messages import EncodeShardTask, ShardRange, shard_job, shard_key
from smalti.parameters import SamplingParameters
from smalti.pipeline import Pipeline
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.shards.decoding import decode_shard
from smalti.shards.encoding import encode_shard
from smalti.shards.encodings import ShardEncodings
from smalti.shards.generating import generate_shard
from smalti.shards.output import ShardOutput, write_output
from smalti.shards.ranking import rank_shard
from smalti.shards.refining import refine_shard
from smalti.shards.tokens import ShardTokens
from smalti.storage import ObjectStore


def batch_prompt(row: int, prompt: str, **changes: Any) -> BatchPrompt:
    """Returns a prompt of a batch: the best two of three candidates, with the number of the row as seed."""
    fields: dict[str, Any] = {
        "row": row,
        "id": f"id-{row}",
        "prompt": prompt,
        "seed": row,
        "n": 2,
        "candidates": 3,
        "sampling": SamplingParameters(),
    }
    return BatchPrompt(**{**fields, **changes})


def encode_shard_task(
    store: ObjectStore, prompts: Sequence[BatchPrompt], model: ModelFolder, batch: str = "b1", **changes: Any
) -> EncodeShardTask:
    """Writes the file of a shard; returns the task with which its work begins.

    Args:
        store: the object store.
        prompts: the prompts of the shard.
        model: the model.
        batch: id of the batch.
        changes: fields of the task.
    """
    part = changes.pop("range", ShardRange(number=0, count=len(prompts)))
    shard = store.put(shard_key(batch, part.number), ShardFile.to_bytes(prompts))
    fields: dict[str, Any] = {
        "job": shard_job(batch, part),
        "expires": time.time() + 3600,
        "model": model.name,
        "revision": model.revision,
        "batch": batch,
        "range": part,
        "shard": shard,
        "has_second_pass": any(prompt.second_pass for prompt in prompts),
    }
    return EncodeShardTask(**{**fields, **changes})


class LocalShard:
    """A shard that is drawn in this process, with files between the stages as services have them."""

    def __init__(self, pipeline: Pipeline, prompts: Sequence[BatchPrompt]) -> None:
        """Draws nothing yet.

        Args:
            pipeline: the engines.
            prompts: the prompts of the shard.
        """
        self._pipeline = pipeline
        self._spec = ModelSpec.load(pipeline.folder)
        self.prompts = prompts
        self.encode: Callable[[str], Encoding] = pipeline.encoder.encode
        """The encoder; a test may replace it, as those that follow."""
        self.decode: Callable[[np.ndarray], np.ndarray] = pipeline.decoder.decode
        self.look: Callable[..., Any] = pipeline.ranker.look
        self.refine: Callable[..., Any] = pipeline.refiner.run

    def encodings(self) -> ShardEncodings:
        """Encodes the prompts."""
        made = encode_shard(self.prompts, self.encode, self._pipeline.rewriter)
        return ShardEncodings.parse("encodings", made.to_bytes(), self.prompts, self._spec)

    def tokens(self, encodings: ShardEncodings, **options: Any) -> ShardTokens:
        """Generates the candidates."""
        made = generate_shard(
            self.prompts,
            encodings,
            self._pipeline.generator,
            codebook_size=self._spec.codebook_size,
            **options,
        )
        return ShardTokens.parse("tokens", made.to_bytes(), self.prompts, self._spec)

    def draw(self, path: Path, picture_format: PictureFormat = PictureFormat.PNG) -> ShardOutput:
        """Draws the shard, and writes its tar."""
        folder = self._pipeline.folder
        model: dict[str, Any] = {"model": folder.name, "revision": folder.revision}
        encodings = self.encodings()
        tokens = self.tokens(encodings)
        decoded = decode_shard(self.prompts, tokens, self.decode, batch_size=2, **model)
        ranked = rank_shard(decoded, self.look)
        refined = refine_shard(
            ranked, tokens, encodings, self.refine, refiner=folder.refiner_revision, batch_size=2
        )
        return write_output(refined, path, tar=path.name, picture_format=picture_format, **model)
