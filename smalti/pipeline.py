"""The four stages in one process: a prompt in, ranked pictures out; no queue, no network."""

import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Int
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.engines.encoder import EncoderEngine
from smalti.engines.generator.engine import DEFAULT_SLOTS, GeneratorEngine, RowsDrawn
from smalti.engines.generator.requests import Candidate
from smalti.engines.ranker import RankerEngine, best
from smalti.errors import SmaltiWarning
from smalti.parameters import SamplingParameters, check_counts, check_prompt, check_seed
from smalti.pictures import Drawing
from smalti.registry import library
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.text.rewording import Rewriter


@dataclass(frozen=True)
class Picture:
    """One drawn picture."""

    image: Image.Image
    score: float
    """The ranker's, comparable among the pictures of one prompt."""
    seed: int
    candidate: int
    """Its index among the candidates; with the seed it gives the same picture again."""
    tokens: Int[np.ndarray, " tokens"]
    drawing: Drawing
    """How it was drawn, as its PNG carries it."""


class Pipeline:
    """A loaded model, ready to draw."""

    def __init__(
        self,
        folder: ModelFolder,
        encoder: EncoderEngine,
        generator: GeneratorEngine,
        decoder: DecoderEngine,
        ranker: RankerEngine,
        rewriter: Rewriter,
    ) -> None:
        """Joins the four engines, and what says prompts in the model's words; `Pipeline.load` makes them."""
        self.folder = folder
        self.encoder = encoder
        self.generator = generator
        self.decoder = decoder
        self.ranker = ranker
        self.rewriter = rewriter

    @classmethod
    def load(cls, model: str | Path | None = None, *, slots: int = DEFAULT_SLOTS) -> Self:
        """Loads a model by its name or its folder; the shipped model for None.

        Args:
            model: a name that `smalti models` lists, or a folder.
            slots: how many candidates are drawn at the same time.

        Raises:
            ModelNotFoundError: there is no such model.
            ModelError: the folder is no model, or a file of it cannot be used.
        """
        folder = library.find(model)
        rewriter, spec = Rewriter.load(folder.words_file), ModelSpec.load(folder)
        encoder = EncoderEngine.load(spec)
        generator = GeneratorEngine.load(spec, encoder.unconditional, slots=slots)
        ranker = RankerEngine.load(folder)
        return cls(folder, encoder, generator, DecoderEngine.load(spec), ranker, rewriter)

    def generate(
        self,
        prompt: str,
        n: int | None = None,
        candidates: int | None = None,
        seed: int | None = None,
        *,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        rows_drawn: RowsDrawn | None = None,
    ) -> list[Picture]:
        """Draws `candidates` pictures of a prompt and returns the `n` that the ranker finds best, best first.

        Values that are None are the model's own; the seed is then random.

        Args:
            prompt: what to draw, in any words: those that a model of a small world does not know are drawn as
                the nearest that it knows, or left out, with a `SmaltiWarning`. Past the model's text length the
                end is cut off, with a warning too.
            n: how many pictures are returned.
            candidates: how many pictures are drawn.
            seed: with the same model, prompt and parameters, gives the same pictures.
            guidance_scale: `uncond + scale * (cond - uncond)`; 1 is no guidance.
            temperature: divides the logits; 0 always takes the most probable token.
            top_k: draws among the k most probable tokens; 0 is no limit.
            top_p: draws among the most probable tokens that together reach this probability; 1 is no limit.
            rows_drawn: told of the progress after each row of tiles.

        Raises:
            InvalidInputError: a value is out of its range; names the field.
        """
        prompt = check_prompt(prompt)
        defaults = self.folder.defaults
        counts = check_counts(
            defaults.n if n is None else n, defaults.candidates if candidates is None else candidates
        )
        seed = check_seed(seed)
        sampling = self.folder.sampling.replace(
            guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p
        )
        pictures = self.draw(
            prompt, seed, range(counts.candidates), sampling, counts.candidates, rows_drawn=rows_drawn
        )
        return [pictures[index] for index in best([picture.score for picture in pictures], counts.n)]

    def draw(
        self,
        prompt: str,
        seed: int,
        candidates: Sequence[int],
        sampling: SamplingParameters,
        of: int,
        *,
        rows_drawn: RowsDrawn | None = None,
    ) -> list[Picture]:
        """Draws candidates of a prompt by their indices, in the order given; every value is already checked.

        Args:
            prompt: what to draw.
            seed: the seed of all of them.
            candidates: their indices.
            sampling: how their tokens are drawn.
            of: how many candidates there are in all, for the record.
            rows_drawn: told of the progress after each row of tiles.
        """
        rewording = self.rewriter(prompt)
        if rewording.notice:
            warnings.warn(f"{rewording.notice}: {_words_command(self.folder)}", SmaltiWarning, stacklevel=2)
        encoding = self.encoder.encode(rewording.prompt)
        if encoding.cut:
            warnings.warn(
                f"the prompt is longer than the {len(encoding.mask)} tokens the model reads; its end is not drawn",
                SmaltiWarning,
                stacklevel=2,
            )
        wanted = [Candidate(seed, index, sampling) for index in candidates]
        tokens = self.generator.generate(encoding, wanted, rows_drawn)
        images = [Image.fromarray(pixels) for pixels in self.decoder.decode(tokens)]
        scores = self.ranker.rank(rewording.prompt, images)
        return [
            Picture(
                image=image,
                score=float(score),
                seed=seed,
                candidate=index,
                tokens=row,
                drawing=Drawing(
                    prompt=prompt,
                    seed=seed,
                    model=self.folder.name,
                    revision=self.folder.revision,
                    sampling=sampling,
                    candidates=of,
                    candidate=index,
                    score=round(float(score), 4),
                    drawn=None if rewording.prompt == prompt else rewording.prompt,
                ),
            )
            for image, score, index, row in zip(images, scores, candidates, tokens, strict=True)
        ]


def _words_command(folder: ModelFolder) -> str:
    """Returns the command that lists the words of a model."""
    model = "" if folder.path.parent == library.SHIPPED else f" {shlex.quote(str(folder.path))}"
    return f"smalti models --words{model}"
