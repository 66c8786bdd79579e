"""The expected pictures: those of the engines alone, without queue, store or services."""

from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from faults.other_decoder import repacked
from smalti.compilation import use_compilation_cache
from smalti.engines.decoder import DecoderEngine
from smalti.engines.encoder import EncoderEngine
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate
from smalti.engines.refiner import RefinerEngine, RefinerInput
from smalti.parameters import SecondPass
from smalti.pictures import Drawing, png_bytes
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.storage.store import digest


class Engines(NamedTuple):
    """The engines that draw the expected pictures."""

    encoder: EncoderEngine
    generator: GeneratorEngine
    decoder: DecoderEngine
    refiner: RefinerEngine


class _Job(NamedTuple):
    prompt: str
    seed: int
    candidates: int
    second_pass: SecondPass | None


class Reference:
    """Generates the expected pictures of requests; must be closed."""

    def __init__(self, folder: ModelFolder, engines: Engines) -> None:
        self._folder = folder
        self._engines = engines
        self._known: dict[tuple[_Job, int], tuple[str, str]] = {}

    @classmethod
    def load(cls, folder: ModelFolder) -> Self:
        """Loads the engines of a model."""
        use_compilation_cache()
        spec = ModelSpec.load(folder)
        encoder = EncoderEngine.load(spec)
        generator = GeneratorEngine.load(spec, encoder.unconditional)
        return cls(folder, Engines(encoder, generator, DecoderEngine.load(spec), RefinerEngine.load(spec)))

    def sha256(
        self, prompt: str, seed: int, candidate: int, of: int, second_pass: SecondPass | None = None
    ) -> str:
        """Returns the checksum of the file of a picture.

        Args:
            prompt: the prompt of the job.
            seed: the seed of the job.
            candidate: the index of the candidate.
            of: the number of candidates of the job.
            second_pass: of the picture; None for the picture as the decoder writes it.
        """
        first = candidate // 16 * 16
        job = _Job(prompt, seed, of, second_pass)
        if (job, candidate) not in self._known:
            self._draw(job, range(first, min(first + 16, of)))
        return self._known[job, candidate][0]

    def repacked_sha256(self, prompt: str, seed: int, candidate: int, of: int) -> str:
        """Returns the checksum of the file of `faults.other_decoder`; takes what `sha256` does."""
        self.sha256(prompt, seed, candidate, of)
        return self._known[_Job(prompt, seed, of, None), candidate][1]

    def close(self) -> None:
        """Closes the engines."""
        self._engines.generator.close()

    def _draw(self, job: _Job, candidates: range) -> None:
        sampling, engines = self._folder.sampling, self._engines
        encoding = engines.encoder.encode(job.prompt)
        tokens = engines.generator.generate(
            encoding, [Candidate(job.seed, index, sampling) for index in candidates]
        )
        pictures = engines.decoder.decode(tokens)
        if job.second_pass is not None:
            inputs = [
                RefinerInput(pixels=pixels, candidate=index, tokens=row, encoding=encoding)
                for index, pixels, row in zip(candidates, pictures, tokens, strict=True)
            ]
            pictures = engines.refiner.run(inputs, job.second_pass, job.seed)
        for index, pixels in zip(candidates, pictures, strict=True):
            drawing = Drawing(
                prompt=job.prompt,
                seed=job.seed,
                model=self._folder.name,
                revision=self._folder.revision,
                sampling=sampling,
                candidates=job.candidates,
                candidate=index,
                second_pass=job.second_pass,
                refiner=self._folder.refiner_revision if job.second_pass else None,
            )
            content = png_bytes(Image.fromarray(np.asarray(pixels)), drawing)
            self._known[job, index] = digest(content), digest(repacked(content))
