"""The expected pictures: those of the engines alone, without queue, store or services."""

from typing import Self

from PIL import Image

from smalti.engines.compilation import use_compilation_cache
from smalti.engines.decoder import DecoderEngine
from smalti.engines.encoder import EncoderEngine
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate
from smalti.pictures import Drawing, png_bytes
from smalti.registry.folder import ModelFolder
from smalti.registry.spec import ModelSpec
from smalti.storage.store import digest


class Reference:
    """Generates the expected pictures of requests; must be closed."""

    def __init__(
        self, folder: ModelFolder, encoder: EncoderEngine, generator: GeneratorEngine, decoder: DecoderEngine
    ) -> None:
        self._folder = folder
        self._encoder = encoder
        self._generator = generator
        self._decoder = decoder
        self._known: dict[tuple[str, int, int, int], str] = {}

    @classmethod
    def load(cls, folder: ModelFolder) -> Self:
        """Loads the engines of a model."""
        use_compilation_cache()
        spec = ModelSpec.load(folder)
        encoder = EncoderEngine.load(spec)
        return cls(
            folder, encoder, GeneratorEngine.load(spec, encoder.unconditional), DecoderEngine.load(spec)
        )

    def sha256(self, prompt: str, seed: int, candidate: int, of: int) -> str:
        """Returns the checksum of the file of a picture.

        Args:
            prompt: the prompt of the job.
            seed: the seed of the job.
            candidate: the index of the candidate.
            of: the number of candidates of the job.
        """
        key = (prompt, seed, candidate, of)
        if key not in self._known:
            self._draw(prompt, seed, range(candidate // 16 * 16, candidate // 16 * 16 + 16), of)
        return self._known[key]

    def close(self) -> None:
        """Closes the engines."""
        self._generator.close()

    def _draw(self, prompt: str, seed: int, candidates: range, of: int) -> None:
        sampling = self._folder.sampling
        tokens = self._generator.generate(
            self._encoder.encode(prompt), [Candidate(seed, index, sampling) for index in candidates]
        )
        for index, pixels in zip(candidates, self._decoder.decode(tokens), strict=True):
            drawing = Drawing(
                prompt=prompt,
                seed=seed,
                model=self._folder.name,
                revision=self._folder.revision,
                sampling=sampling,
                candidates=of,
                candidate=index,
            )
            file = png_bytes(Image.fromarray(pixels), drawing)
            self._known[prompt, seed, index, of] = digest(file)
