"""All stages in one process: a prompt in, ranked pictures out, without a queue or a network."""

import shlex
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float
from PIL import Image

from smalti.compilation import use_compilation_cache
from smalti.engines.decoder import DecoderEngine
from smalti.engines.encoder import EncoderEngine
from smalti.engines.generator.engine import DEFAULT_SLOTS, GeneratorEngine
from smalti.engines.generator.given import kept_by
from smalti.engines.generator.requests import Candidate, GenerationRequest
from smalti.engines.initial_image import given_tokens
from smalti.engines.ranker import RankerEngine
from smalti.engines.refiner import RefinerEngine, RefinerInput
from smalti.errors import SmaltiWarning
from smalti.parameters import (
    Refinement,
    SamplingParameters,
    SecondPass,
    check_counts,
    check_diversity,
    check_prompt,
    check_second_pass,
    check_seed,
)
from smalti.pictures import Drawing, LocalPicture, Picture
from smalti.registry import library
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.selection import SCORE_DIGITS, choose
from smalti.starting import exit_without_collection
from smalti.text.rewording import Rewriter

__all__ = ["LocalPicture", "OnProgress", "Pipeline"]

OnProgress = Callable[[int, int], None]
"""Called after each row of tiles with the tokens generated so far and the tokens to generate, over all candidates."""


class Pipeline:
    """A loaded model that generates pictures; a context manager, which closes it."""

    def __init__(
        self,
        *,
        folder: ModelFolder,
        encoder: EncoderEngine,
        generator: GeneratorEngine,
        decoder: DecoderEngine,
        ranker: RankerEngine,
        refiner: RefinerEngine,
        rewriter: Rewriter,
    ) -> None:
        """Joins the parts of a model; `Pipeline.load` loads them.

        Args:
            folder: the model's folder.
            encoder: the text encoder.
            generator: the image-token generator.
            decoder: the VQGAN decoder.
            ranker: the CLIP ranker.
            refiner: refines and enlarges the chosen pictures, if that is asked for.
            rewriter: rewrites prompts in the words that the model knows.
        """
        self.folder = folder
        self.encoder = encoder
        self.generator = generator
        self.decoder = decoder
        self.ranker = ranker
        self.refiner = refiner
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
        use_compilation_cache()
        exit_without_collection()
        folder = library.find(model)
        spec = ModelSpec.load(folder)
        # Importing torch takes half of the time, and compiling the generator even more if its programs are not kept.
        # Both run beside the rest.
        with ThreadPoolExecutor(thread_name_prefix="load") as threads:
            ranker = threads.submit(RankerEngine.load, folder)
            encoder = EncoderEngine.load(spec)
            generator = GeneratorEngine.load(spec, encoder.unconditional, slots=slots, eager=False)
            generator.start()
            try:
                decoder = DecoderEngine.load(spec)
                decoder.prepare(spec.tokens)
                refiner, rewriter = RefinerEngine.load(spec), Rewriter.load(folder.words_file)
                return cls(
                    folder=folder,
                    encoder=encoder,
                    generator=generator,
                    ranker=ranker.result(),
                    decoder=decoder,
                    refiner=refiner,
                    rewriter=rewriter,
                )
            except BaseException:
                generator.close()
                raise

    def close(self) -> None:
        """Ends the threads of the engines; afterwards nothing can be generated."""
        self.generator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        layout_share: float | None = None,
        layout_temperature: float | None = None,
        layout_guidance_scale: float | None = None,
        vary: bool | None = None,
        diversity: float | None = None,
        refine: Refinement | bool | None = None,
        upscale: int | None = None,
        initial_image: bytes | Path | Picture | None = None,
        keep_rows: int | None = None,
        mask: bytes | Path | None = None,
        strength: float | None = None,
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
            layout_share: share of the tokens, the first ones, to which the next two apply; 0 for none.
            layout_temperature: the temperature of these tokens.
            layout_guidance_scale: the guidance scale of these tokens.
            vary: whether candidates differ in what the prompt leaves open, such as the style; see
                `LocalPicture.drawing.wording`. Does nothing for a model that has no list of what it may vary.
            diversity: weight of difference from each other when pictures are chosen; 0 chooses by score alone.
                With more, the pictures come in the order in which they are chosen; the first has the highest score.
            refine: draws the details of the chosen pictures again; True for the defaults. The model must have a
                refiner.
            upscale: enlarges the chosen pictures by 1, 2 or 4. The default is the refiner's own factor with `refine`,
                and otherwise 1. Without `refine`, pictures are resampled, which adds no detail.
            initial_image: a picture of which a part is kept: the path or content of a file, or a picture of this
                model. One of the next three says which part.
            keep_rows: number of rows of tiles to keep, from the top.
            mask: the path or content of a picture file as large as the initial image: tiles with a fully transparent
                pixel are drawn anew, and all others are kept.
            strength: share of the tiles to draw anew, between 0 and 1; each candidate draws other ones anew.
            on_progress: called after each row of tiles.

        Raises:
            InvalidInputError: a value is out of range, or a file cannot be used; names the argument.
            NotSupportedError: the model has no refiner, or cannot encode the initial image.
        """
        prompt = check_prompt(prompt)
        defaults = self.folder.defaults
        counts = check_counts(
            defaults.n if n is None else n, defaults.candidates if candidates is None else candidates
        )
        sampling = self.folder.sampling.replace(
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            layout_share=layout_share,
            layout_temperature=layout_temperature,
            layout_guidance_scale=layout_guidance_scale,
        )
        diversity = check_diversity(defaults.diversity if diversity is None else diversity)
        second_pass = check_second_pass(refine, upscale, self.refiner.trained_upscale)
        given = given_tokens(self.decoder, initial_image, keep_rows=keep_rows, mask=mask, strength=strength)
        pictures, features = self._generate(
            prompt,
            range(counts.candidates),
            seed=check_seed(seed),
            sampling=sampling,
            total=counts.candidates,
            vary=defaults.vary if vary is None else vary,
            given=given,
            strength=strength,
            on_progress=on_progress,
        )
        scores = [picture.score for picture in pictures]
        chosen = [pictures[index] for index in choose(scores, features, counts.n, diversity)]
        return self.refine(chosen, second_pass) if second_pass else chosen

    def refine(self, pictures: Sequence[LocalPicture], second_pass: SecondPass) -> list[LocalPicture]:
        """Returns pictures of this model after a second pass.

        Args:
            pictures: at least one picture; all have the same seed.
            second_pass: how to enlarge and refine them. A picture does not depend on the others.

        Raises:
            NotSupportedError: the model has no refiner.
        """
        refiner = self.folder.refiner_revision if second_pass.refine else None
        # Enlarging alone needs no encoding.
        wordings = dict.fromkeys(map(_wording, pictures)) if second_pass.refine else ()
        encodings = {wording: self.encoder.encode(wording) for wording in wordings}
        inputs = [
            RefinerInput(
                pixels=np.asarray(picture.image),
                candidate=picture.candidate,
                tokens=picture.tokens,
                encoding=encodings.get(_wording(picture)),
            )
            for picture in pictures
        ]
        refined = self.refiner.run(inputs, second_pass, pictures[0].seed)
        record = {"second_pass": second_pass, "refiner": refiner}
        return [
            replace(picture, image=Image.fromarray(pixels), drawing=picture.drawing.model_copy(update=record))
            for picture, pixels in zip(pictures, refined, strict=True)
        ]

    def generate_candidates(
        self,
        prompt: str,
        candidates: Sequence[int],
        *,
        seed: int,
        sampling: SamplingParameters,
        total: int,
        vary: bool = False,
        on_progress: OnProgress | None = None,
    ) -> list[LocalPicture]:
        """Generates chosen candidates of a prompt, unranked; does not check its arguments.

        Args:
            prompt: what to draw.
            candidates: indices of the candidates to generate.
            seed: the seed of all candidates.
            sampling: how tokens are sampled.
            total: number of candidates to record in the pictures' drawings.
            vary: whether candidates differ in what the prompt leaves open.
            on_progress: called after each row of tiles.

        Returns:
            The pictures, in the order of `candidates`.
        """
        pictures, _ = self._generate(
            prompt,
            candidates,
            seed=seed,
            sampling=sampling,
            total=total,
            vary=vary,
            on_progress=on_progress,
        )
        return pictures

    def request(
        self,
        prompt: str,
        candidates: Sequence[int],
        *,
        seed: int,
        sampling: SamplingParameters,
        vary: bool,
        given: Sequence[int] = (),
        strength: float | None = None,
    ) -> tuple[GenerationRequest, Sequence[str]]:
        """Returns the request to the generator for candidates of a prompt, and the wording of each candidate.

        Args:
            prompt: the prompt in words that the model knows.
            candidates: indices of the candidates.
            seed: the seed of all candidates.
            sampling: how tokens are sampled.
            vary: whether candidates differ in what the prompt leaves open; otherwise all have the prompt as wording.
            given: tokens of an initial image, as `GenerateTask.given`.
            strength: share of them that is drawn anew.
        """
        wordings: Sequence[str] = [prompt] * len(candidates)
        if vary:
            wordings = self.rewriter.wordings(prompt, seed, candidates)
        places = {wording: place for place, wording in enumerate(dict.fromkeys(wordings))}
        wanted = tuple(
            Candidate(seed, index, sampling, places[wording], kept_by(given, strength, seed, index))
            for index, wording in zip(candidates, wordings, strict=True)
        )
        encodings = tuple(self.encoder.encode(wording) for wording in places)
        return GenerationRequest(encodings=encodings, candidates=wanted), wordings

    def _generate(
        self,
        prompt: str,
        candidates: Sequence[int],
        *,
        seed: int,
        sampling: SamplingParameters,
        total: int,
        vary: bool,
        given: Sequence[int] = (),
        strength: float | None = None,
        on_progress: OnProgress | None,
    ) -> tuple[list[LocalPicture], Float[np.ndarray, "candidates features"]]:
        """Generates candidates as `generate_candidates` does; also returns their features."""
        rewording = self.rewriter(prompt)
        if rewording.notice:
            warnings.warn(f"{rewording.notice}: {_words_command(self.folder)}", SmaltiWarning, stacklevel=3)
        request, wordings = self.request(
            rewording.prompt,
            candidates,
            seed=seed,
            sampling=sampling,
            vary=vary,
            given=given,
            strength=strength,
        )
        if self.encoder.is_cut(rewording.prompt):
            length = len(request.encodings[0].mask)
            warnings.warn(
                f"the prompt is longer than the {length} tokens that the model reads; its end is ignored",
                SmaltiWarning,
                stacklevel=3,
            )
        tokens = self.generator.generate(request.encodings, request.candidates, on_progress)
        images = [Image.fromarray(pixels) for pixels in self.decoder.decode(tokens)]
        ranking = self.ranker.look(rewording.prompt, images)
        pictures = [
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
                    score=round(float(score), SCORE_DIGITS),
                    drawn=None if rewording.prompt == prompt else rewording.prompt,
                    vary=vary,
                    wording=wording if vary else None,
                ),
            )
            for image, score, index, row, wording in zip(
                images, ranking.scores, candidates, tokens, wordings, strict=True
            )
        ]
        return pictures, ranking.features


def _wording(picture: LocalPicture) -> str:
    """Returns what was encoded for a picture."""
    return picture.drawing.wording or picture.drawing.drawn or picture.drawing.prompt


def _words_command(folder: ModelFolder) -> str:
    """Returns the command that lists a model's words."""
    model = "" if folder.path.parent == library.SHIPPED else f" {shlex.quote(str(folder.path))}"
    return f"smalti models --words{model}"
