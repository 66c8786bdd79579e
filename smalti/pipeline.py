"""All four stages in one process: a prompt in, ranked pictures out, without a queue or a network."""

import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Int
from PIL import Image

from smalti.engines.decoder import DecoderEngine
from smalti.engines.encoder import EncoderEngine
from smalti.engines.generator.engine import DEFAULT_SLOTS, GeneratorEngine
from smalti.engines.generator.requests import Candidate
from smalti.engines.ranker import RankerEngine, best
from smalti.errors import SmaltiWarning
from smalti.files import write_atomically
from smalti.parameters import SamplingParameters, check_counts, check_prompt, check_seed
from smalti.pictures import Drawing, png_bytes
from smalti.registry import library
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.text.rewording import Rewriter

__all__ = ["LocalPicture", "OnProgress", "Pipeline"]

OnProgress = Callable[[int, int], None]
"""Called after each row of tiles with the tokens generated so far and the tokens to generate, over all candidates."""


@dataclass(frozen=True, kw_only=True)
class LocalPicture:
    """A picture that a pipeline has generated; a `smalti.Picture`."""

    image: Image.Image
    """The picture itself, in RGB."""
    score: float
    """The ranker's score, comparable among the pictures of one prompt."""
    seed: int
    """The seed, shared by all candidates of a prompt."""
    candidate: int
    """Its index among the candidates; together with the seed it reproduces the picture."""
    tokens: Int[np.ndarray, " tokens"]
    """Its image tokens, row by row."""
    drawing: Drawing
    """The record in the PNG file of how the picture was made."""

    def to_png(self) -> bytes:
        """Returns the PNG file, with its drawing inside, that `smalti generate` writes."""
        return png_bytes(self.image, self.drawing)

    def save(self, path: Path | str) -> None:
        """Writes the PNG file atomically; a file with this name is replaced."""
        write_atomically(Path(path), self.to_png())


class Pipeline:
    """A loaded model that generates pictures."""

    def __init__(
        self,
        *,
        folder: ModelFolder,
        encoder: EncoderEngine,
        generator: GeneratorEngine,
        decoder: DecoderEngine,
        ranker: RankerEngine,
        rewriter: Rewriter,
    ) -> None:
        """Joins the parts of a model; `Pipeline.load` loads them.

        Args:
            folder: the model's folder.
            encoder: the text encoder.
            generator: the image-token generator.
            decoder: the VQGAN decoder.
            ranker: the CLIP ranker.
            rewriter: rewrites prompts in the words that the model knows.
        """
        self.folder = folder
        self.encoder = encoder
        self.generator = generator
        self.decoder = decoder
        self.ranker = ranker
        self.rewriter = rewriter

    @classmethod
    def load(cls, model: str | Path | None = None, *, slots: int = DEFAULT_SLOTS) -> Self:
        """Loads a model.

        Args:
            model: a name that `smalti models` lists, or a folder; None for the shipped model.
            slots: number of candidates that are generated at the same time.

        Raises:
            ModelNotFoundError: there is no such model.
            ModelError: the folder does not hold a model, or one of its files cannot be used.
        """
        folder = library.find(model)
        rewriter, spec = Rewriter.load(folder.words_file), ModelSpec.load(folder)
        encoder = EncoderEngine.load(spec)
        return cls(
            folder=folder,
            encoder=encoder,
            generator=GeneratorEngine.load(spec, encoder.unconditional, slots=slots),
            ranker=RankerEngine.load(folder),
            decoder=DecoderEngine.load(spec),
            rewriter=rewriter,
        )

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
        on_progress: OnProgress | None = None,
    ) -> list[LocalPicture]:
        """Generates `candidates` pictures of a prompt and returns the `n` with the highest scores, best first.

        None stands for the model's default; the default seed is random.

        Args:
            prompt: what to draw. A model of a small world replaces unknown words by the nearest known ones, or
                leaves them out, with a `SmaltiWarning`. A prompt that is longer than the model's text length is
                cut off, also with a warning.
            n: number of pictures to return.
            candidates: number of pictures to generate.
            seed: equal seeds give equal pictures, for the same model, prompt and parameters.
            guidance_scale: `unconditional + scale * (conditional - unconditional)`; 1 turns guidance off.
            temperature: divides the logits; 0 always takes the most probable token.
            top_k: samples among the k most probable tokens; 0 for no limit.
            top_p: samples among the most probable tokens that together reach this probability; 1 for no limit.
            on_progress: called after each row of tiles.

        Raises:
            InvalidInputError: a value is out of range; names the argument.
        """
        prompt = check_prompt(prompt)
        defaults = self.folder.defaults
        counts = check_counts(
            defaults.n if n is None else n, defaults.candidates if candidates is None else candidates
        )
        sampling = self.folder.sampling.replace(
            guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, top_p=top_p
        )
        pictures = self.generate_candidates(
            prompt,
            range(counts.candidates),
            seed=check_seed(seed),
            sampling=sampling,
            total=counts.candidates,
            on_progress=on_progress,
        )
        return [pictures[index] for index in best([picture.score for picture in pictures], counts.n)]

    def generate_candidates(
        self,
        prompt: str,
        candidates: Sequence[int],
        *,
        seed: int,
        sampling: SamplingParameters,
        total: int,
        on_progress: OnProgress | None = None,
    ) -> list[LocalPicture]:
        """Generates chosen candidates of a prompt, unranked; does not check its arguments.

        Args:
            prompt: what to draw.
            candidates: indices of the candidates to generate.
            seed: the seed of all candidates.
            sampling: how tokens are sampled.
            total: number of candidates to record in the pictures' drawings.
            on_progress: called after each row of tiles.

        Returns:
            The pictures, in the order of `candidates`.
        """
        rewording = self.rewriter(prompt)
        if rewording.notice:
            warnings.warn(f"{rewording.notice}: {_words_command(self.folder)}", SmaltiWarning, stacklevel=2)
        encoding = self.encoder.encode(rewording.prompt)
        if encoding.cut:
            warnings.warn(
                f"the prompt is longer than the {len(encoding.mask)} tokens that the model reads; its end is ignored",
                SmaltiWarning,
                stacklevel=2,
            )
        requested = [Candidate(seed, index, sampling) for index in candidates]
        tokens = self.generator.generate(encoding, requested, on_progress)
        images = [Image.fromarray(pixels) for pixels in self.decoder.decode(tokens)]
        scores = self.ranker.rank(rewording.prompt, images)
        return [
            LocalPicture(
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
                    candidates=total,
                    candidate=index,
                    score=round(float(score), 4),
                    drawn=None if rewording.prompt == prompt else rewording.prompt,
                ),
            )
            for image, score, index, row in zip(images, scores, candidates, tokens, strict=True)
        ]


def _words_command(folder: ModelFolder) -> str:
    """Returns the command that lists a model's words."""
    model = "" if folder.path.parent == library.SHIPPED else f" {shlex.quote(str(folder.path))}"
    return f"smalti models --words{model}"
