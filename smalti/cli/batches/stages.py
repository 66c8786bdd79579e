"""The stages of a shard with the engines of a pipeline."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from smalti.batches import BatchLayout, BatchPrompt, PictureFormat, PlannedShard, PromptResult
from smalti.cli.batches.drawing import DrawnShard
from smalti.shards.decoding import decode_shard
from smalti.shards.encoding import encode_shard
from smalti.shards.encodings import ShardEncodings
from smalti.shards.generating import generate_shard
from smalti.shards.output import write_output
from smalti.shards.ranking import rank_shard
from smalti.shards.refining import refine_shard
from smalti.shards.tokens import ShardTokens

if TYPE_CHECKING:
    from smalti.pipeline import Pipeline


class PipelineStages:
    """The engines of a pipeline as `ShardStages`."""

    def __init__(self, pipeline: "Pipeline", picture_format: PictureFormat, codebook_size: int) -> None:
        """Takes what draws.

        Args:
            pipeline: the loaded model.
            picture_format: the format of the pictures.
            codebook_size: the number of different image tokens.
        """
        self._pipeline = pipeline
        self._codebook_size = codebook_size
        self.picture_format = picture_format
        self.model = pipeline.folder.name
        self.revision = pipeline.folder.revision

    def encode(self, shard: PlannedShard, check: Callable[[], None]) -> ShardEncodings:  # noqa: D102
        pipeline = self._pipeline
        return encode_shard(
            shard.prompts, pipeline.encoder.encode, pipeline.rewriter, on_prompt=lambda prompt: check()
        )

    def generate(  # noqa: D102
        self,
        shard: PlannedShard,
        encodings: ShardEncodings,
        on_done: Callable[[int], None],
        check: Callable[[], None],
    ) -> ShardTokens:
        return generate_shard(
            shard.prompts,
            encodings,
            self._pipeline.generator,
            codebook_size=self._codebook_size,
            on_progress=lambda done, total: on_done(done),
            check=lambda left: check(),
        )

    def draw(  # noqa: D102
        self,
        shard: PlannedShard,
        encodings: ShardEncodings,
        tokens: ShardTokens,
        folder: Path,
        check: Callable[[], None],
    ) -> DrawnShard:
        pipeline = self._pipeline

        def on_prompt(prompt: BatchPrompt) -> None:
            check()

        drawn = decode_shard(
            shard.prompts,
            tokens,
            pipeline.decoder.decode,
            model=self.model,
            revision=self.revision,
            batch_size=pipeline.decoder.batch_size,
            on_prompt=on_prompt,
        )
        drawn = rank_shard(drawn, pipeline.ranker.look, on_prompt=on_prompt)
        drawn = refine_shard(
            drawn,
            tokens,
            encodings,
            pipeline.refiner.run,
            refiner=pipeline.folder.refiner_revision,
            batch_size=pipeline.refiner.batch_size,
            on_prompt=on_prompt,
        )
        path = self.tar_path(shard.number, folder)
        output = write_output(
            drawn,
            path,
            tar=BatchLayout().tar(shard.range),
            picture_format=self.picture_format,
            model=self.model,
            revision=self.revision,
        )
        if not output.pictures:
            path.unlink()
        return DrawnShard(
            number=shard.number, results=list(output.results), tar=path if output.pictures else None
        )

    def draw_alone(self, shard: PlannedShard, folder: Path, check: Callable[[], None]) -> DrawnShard:
        """Takes a shard through all stages, one after another."""
        encodings = self.encode(shard, check)
        tokens = self.generate(shard, encodings, lambda done: None, check)
        return self.draw(shard, encodings, tokens, folder, check)

    def not_drawn(self, prompt: BatchPrompt, problem: str) -> PromptResult:
        """Returns the result of a prompt that is not drawn."""
        return PromptResult.not_drawn(prompt, problem, model=self.model, revision=self.revision)

    def tar_path(self, number: int, folder: Path) -> Path:
        """Returns where the tar of a shard is made."""
        return folder / f"{number:05d}.tar"
