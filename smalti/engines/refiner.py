"""The refiner: enlarges pictures, and draws their details again by rectified flow.

Enlarging needs no network, so that a model without a refiner needs no JAX here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from smalti.engines.encoding import Encoding
from smalti.errors import NotSupportedError
from smalti.parameters import Refinement, SecondPass
from smalti.registry.spec import ModelSpec

if TYPE_CHECKING:
    from smalti.models.refiner import Refiner

_NOISE_KEY: Final = int.from_bytes(b"refine", "big")
"""Second word of the key of the noise, so that it shares no random numbers with anything else that has the seed."""


@dataclass(frozen=True, kw_only=True)
class RefinerInput:
    """A picture to refine."""

    pixels: UInt8[np.ndarray, "height width 3"]
    candidate: int = 0
    """Its index among the candidates; with the seed it determines the noise."""
    tokens: Int[np.ndarray, " tokens"] | None = None
    """Its image tokens; None if it is only enlarged."""
    encoding: Encoding | None = None
    """The encoding that it was generated from; None if it is only enlarged."""


class RefinerEngine:
    """Refines in batches of a fixed size.

    One program serves every call with the same enlargement, and a picture does not depend on the pictures refined with
    it.
    """

    def __init__(
        self,
        refiner: "Refiner | None" = None,
        codebook: Float[np.ndarray, "codes code_dim"] | None = None,
        *,
        batch_size: int | None = None,
    ) -> None:
        """Makes the engine of a refiner.

        Args:
            refiner: the network; None for an engine that only enlarges.
            codebook: the code vectors of the model's VQGAN; None without a network.
            batch_size: pictures per run of the program; by default 1 on a CPU and 4 on other devices.
        """
        self.refiner = refiner
        self._codebook = codebook
        self.batch_size = batch_size or (_default_batch_size() if refiner else 1)

    @classmethod
    def load(cls, spec: ModelSpec) -> "RefinerEngine":
        """Loads the engine of a model; raises `ModelError` if a file cannot be used."""
        if spec.folder.refiner_folder is None:
            return cls()
        from smalti.models.refiner import Refiner
        from smalti.models.vqgan import load_codebook

        return cls(Refiner.load(spec.folder.refiner_folder), load_codebook(spec.folder.vqgan_folder))

    @property
    def trained_upscale(self) -> int | None:
        """Factor by which the network was trained to enlarge pictures; None without a network."""
        return self.refiner.config.upscale if self.refiner else None

    def run(
        self, pictures: Sequence[RefinerInput], second_pass: SecondPass, seed: int
    ) -> UInt8[np.ndarray, "pictures out_height out_width 3"]:
        """Returns pictures after their second pass.

        Args:
            pictures: at least one; all have the same size.
            second_pass: how to enlarge and refine them.
            seed: the seed of the noise.

        Raises:
            NotSupportedError: the model has no refiner.
        """
        enlarged = np.stack([enlarge(picture.pixels, second_pass.upscale) for picture in pictures])
        refine = second_pass.refine
        if refine is None or refine.strength == 0:
            return enlarged
        if self.refiner is None or self._codebook is None:
            raise NotSupportedError("the model has no refiner; leave out refine")
        batches = []
        for start in range(0, len(pictures), self.batch_size):
            end = start + self.batch_size
            batches.append(self._refine(pictures[start:end], enlarged[start:end], refine, seed))
        # Rounded, so that a network that changes nothing returns the same pixels.
        return np.rint(np.concatenate(batches).clip(0, 1) * 255).astype(np.uint8)

    def _refine(
        self,
        pictures: Sequence[RefinerInput],
        enlarged: UInt8[np.ndarray, "pictures height width 3"],
        refine: Refinement,
        seed: int,
    ) -> Float[np.ndarray, "pictures height width 3"]:
        """Returns the refined pictures of one batch, not clipped."""
        assert self.refiner is not None
        start = enlarged.astype(np.float32) / 255
        noise = np.stack([noise_of(seed, picture.candidate, start.shape[1:]) for picture in pictures])
        start, noise, codes, text, mask = (
            _padded(each, self.batch_size) for each in (start, noise, *self._conditions(pictures))
        )
        return flow(self.refiner, start, noise, (codes, text, mask), refine)[: len(pictures)]

    def _conditions(self, pictures: Sequence[RefinerInput]) -> Iterator[np.ndarray]:
        """Yields code vectors, hidden states of the prompt, and their mask."""
        assert self._codebook is not None
        codes, states, masks = [], [], []
        for picture in pictures:
            assert picture.tokens is not None
            assert picture.encoding is not None
            side = round(len(picture.tokens) ** 0.5)
            codes.append(self._codebook[picture.tokens].reshape(side, side, -1))
            states.append(picture.encoding.states)
            masks.append(picture.encoding.mask)
        yield np.stack(codes)
        yield np.stack(states).astype(np.float32)
        yield np.stack(masks).astype(np.int32)


def flow(
    refiner: "Refiner",
    start: Float[np.ndarray, "batch height width 3"],
    noise: Float[np.ndarray, "batch height width 3"],
    conditions: tuple[np.ndarray, np.ndarray, np.ndarray],
    refine: Refinement,
) -> Float[np.ndarray, "batch height width 3"]:
    """Returns the end of the flow from enlarged pictures, by Euler's method; not clipped to [0, 1].

    Args:
        refiner: the network.
        start: the enlarged pictures.
        noise: standard normal numbers.
        conditions: code vectors, hidden states of the prompt, and their mask.
        refine: where the flow begins, and its number of steps.
    """
    strength, steps = np.float32(refine.strength), refine.steps
    # At the time 1 - strength, where the flow begins, the enlarged picture stands for the unknown original.
    state = start + strength * np.float32(refiner.config.noise) * noise
    for step in range(steps):
        time = np.full(len(state), 1 - strength + strength * np.float32(step / steps), np.float32)
        predicted = np.asarray(refiner.predict(state, start, time, *conditions))
        # The velocity (predicted - state) / (1 - time), for a time of strength / steps.
        state = state + (predicted - state) / np.float32(steps - step)
    return state


def enlarge(
    pixels: UInt8[np.ndarray, "height width 3"], factor: int
) -> UInt8[np.ndarray, "out_height out_width 3"]:
    """Returns a picture resampled with Lanczos' filter to `factor` times its width and height."""
    if factor == 1:
        return pixels
    height, width, _ = pixels.shape
    image = Image.fromarray(pixels).resize((width * factor, height * factor), Image.Resampling.LANCZOS)
    return np.asarray(image)


def noise_of(seed: int, candidate: int, shape: tuple[int, ...]) -> Float[np.ndarray, "*shape"]:
    """Returns standard normal numbers, by Philox, that depend only on (seed, candidate)."""
    bits = np.random.Philox(
        key=np.array([seed, _NOISE_KEY], np.uint64), counter=np.array([0, 0, 0, candidate], np.uint64)
    )
    return np.random.Generator(bits).standard_normal(shape, np.float32)


def _default_batch_size() -> int:
    # After the network, which needs JAX anyway.
    from smalti.engines.decoder import default_batch_size

    return default_batch_size()


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    """Pads a batch with zeros."""
    return np.concatenate([rows, np.zeros((size - len(rows), *rows.shape[1:]), rows.dtype)])
