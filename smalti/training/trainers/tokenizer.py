"""Training the image tokenizer: a VQGAN that learns to reconstruct pictures from their tokens."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from smalti.errors import InvalidInputError
from smalti.models import vqgan
from smalti.models.layers import Parameters
from smalti.models.vqgan import VQGAN, VQGANConfig
from smalti.registry.folder import ModelFolder
from smalti.registry.manifest import MANIFEST_FILE
from smalti.training.batches.batch import Batch
from smalti.training.batches.random_numbers import generator_at
from smalti.training.batches.sources import PictureSource, open_pictures
from smalti.training.loop.run_folder import SETTINGS_FILE, load_best, load_run_settings
from smalti.training.loop.sheets import compare
from smalti.training.loop.trainee import JaxTrainee
from smalti.training.similarity import psnr, sharpness, ssim
from smalti.training.trainers.inputs import VQGAN_FOLDER, Advance, Inputs, keep
from smalti.training.trainers.tokenizer_objective import CODES, DECODER, TokenizerObjective, untrained_weights
from smalti.training.trainers.tokenizer_settings import TokenizerSettings

_SHEET_PICTURES = 48
_STREAM = 16
"""Stream of random numbers of the crops; see `generator_at`."""


class TokenizerTrainee(JaxTrainee):
    """A tokenizer in training."""

    def __init__(
        self, settings: TokenizerSettings, pictures: PictureSource, start: VQGAN | None = None
    ) -> None:
        """Makes the model before its first step, and the held-out pictures.

        Args:
            settings: of the run.
            pictures: pictures with the model's resolution.
            start: tokenizer whose weights the run starts from; by default they are untrained.

        Raises:
            ConfigError: the sizes do not fit together.
            InvalidInputError: `start` does not fit the settings.
            ModelError: the weights of the perceptual loss cannot be used.
        """
        objective = TokenizerObjective(settings, None if start is None else starting_weights(start, settings))
        super().__init__(
            objective,
            settings,
            partial(_make_batch, pictures, settings),
            tokens_per_step=settings.batch_size * objective.config.tokens,
            frozen=objective.frozen,
            apart=True,
        )
        # A discriminator trades error for sharpness, so the smallest error would choose what was before it.
        self.keeps_newest = settings.adversarial is not None
        self._config = objective.config
        self._held_out = pictures.held_out(settings.held_out)
        self._size = settings.batch_size

    @property
    def weights(self) -> Parameters:
        """Weights of the network, with the moving average of the decoder if there is one."""
        return {**self.state.params, **self.state.memory.get("average", {})}

    def evaluate(self) -> dict[str, float]:
        """Compares held-out pictures with their reconstructions, and measures how the codes are used.

        Returns:
            "loss", the absolute error of pixels; PSNR and SSIM; "sharpness" as a share of that of the pictures;
            "codes_used", the share of codes in use; "perplexity", the number of equally frequent codes with the same
            entropy.
        """
        pictures = self._held_out.astype(np.float32) / 255
        reconstructed, codes = self._reconstruct(self._held_out)
        shares = np.bincount(codes.ravel(), minlength=self._config.n_embed) / codes.size
        used = shares[shares > 0]
        return {
            "loss": float(np.abs(2 * (reconstructed - pictures)).mean()),
            "psnr": float(psnr(reconstructed, pictures).mean()),
            "ssim": float(ssim(reconstructed, pictures).mean()),
            "sharpness": float(sharpness(_bytes(reconstructed)).mean() / sharpness(self._held_out).mean()),
            "codes_used": len(used) / self._config.n_embed,
            "perplexity": float(np.exp(-(used * np.log(used)).sum())),
        }

    def sheet(self) -> Image.Image:
        """Shows held-out pictures, each row above the row of its reconstructions."""
        pictures = self._held_out[:_SHEET_PICTURES]
        reconstructed, _ = self._reconstruct(pictures)
        return compare(pictures, _bytes(reconstructed))

    def _reconstruct(
        self, pictures: UInt8[np.ndarray, "pictures height width 3"]
    ) -> tuple[Float[np.ndarray, "pictures height width 3"], Int[np.ndarray, "pictures tokens"]]:
        """Returns reconstructions with pixels in [0, 1], and the tokens, as the exported model computes them."""
        model = VQGAN(self._config, self.weights)
        reconstructed, codes = [], []
        for start in range(0, len(pictures), self._size):
            part = pictures[start : start + self._size]
            codes.append(np.asarray(model.encode(part.astype(np.float32) / 255)))
            reconstructed.append(np.asarray(model.decode(codes[-1])))
        return np.concatenate(reconstructed).clip(0, 1), np.concatenate(codes)


def prepare(settings: TokenizerSettings, inputs: Inputs, run: Path, advance: Advance) -> TokenizerTrainee:
    """Makes the trainee of a run.

    Args:
        settings: of the run.
        inputs: a world or Parquet shards with the column `image`, and the tokenizer to start from, if there is one; a
            resumed run uses the one that it kept.
        run: folder of the run.
        advance: not called, since no pictures are encoded.

    Raises:
        ConfigError: the sizes do not fit together.
        InvalidInputError: the data folder or the tokenizer to start from cannot be used, or is missing.
        ModelError: a file of weights cannot be used.
        SmaltiError: the disk is full or cannot be written.
    """
    kept, given = run / VQGAN_FOLDER, inputs.vqgan
    if given is not None:
        keep(kept, lambda folder: load_vqgan(given).save(folder))
    start = VQGAN.load(kept) if kept.is_dir() else None
    if start is None and settings.freeze == "codes":
        raise InvalidInputError(
            "from", 'must be given, since freeze is "codes": a tokenizer\'s run or a model'
        )
    pictures = open_pictures(inputs.data, settings.config().resolution, settings.seed)
    return TokenizerTrainee(settings, pictures, start)


def starting_weights(start: VQGAN, settings: TokenizerSettings) -> Parameters:
    """Returns the weights of a tokenizer for a run that starts from it.

    A decoder of other sizes than the tokenizer's starts untrained.

    Raises:
        ConfigError: the sizes of the settings do not fit together.
        InvalidInputError: the tokenizer has no encoder, or its codes do not fit the settings.
    """
    config = settings.config()
    if not start.has_encoder:
        raise InvalidInputError("from", "must have an encoder; this VQGAN contains only the decoder")
    sizes = sizes_of_codes(config)
    for name, theirs in sizes_of_codes(start.config).items():
        if theirs != sizes[name]:
            raise InvalidInputError(
                "from",
                f"must have the encoder and the codes of the settings: its {name} is {theirs}, not {sizes[name]}",
            )
    lengths = np.linalg.norm(start.codebook, axis=1)
    if settings.freeze == "nothing" and not np.allclose(lengths, lengths[0], rtol=0.01):
        raise InvalidInputError(
            "from",
            'must have codes of equal length to train them further; set freeze = "codes" to train the decoder',
        )
    same = (
        start.config.decoder_levels == config.decoder_levels and start.config.z_channels == config.z_channels
    )
    taken = CODES + DECODER if same else CODES
    # Copies, since a step gives up the memory of the weights.
    weights = {
        name: jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), start.params[name]) for name in taken
    }
    return {**untrained_weights(config, jax.random.key(settings.seed)), **weights}


def sizes_of_codes(config: VQGANConfig) -> dict[str, object]:
    """Returns the sizes of the part of a VQGAN that makes tokens, by their names."""
    names = ("z_channels", "embed_dim", "n_embed")
    return {**vars(config.encoder_levels), **{name: getattr(config, name) for name in names}}


def require_vqgan(inputs: Inputs) -> VQGAN:
    """Loads the image tokenizer of a trainer's inputs.

    Raises:
        InvalidInputError: none was given, the run is not a tokenizer's, or it has not been evaluated yet.
        ModelError: the folder holds no VQGAN.
    """
    if inputs.vqgan is None:
        raise InvalidInputError("vqgan", "must be given: a tokenizer's run, or a folder with a VQGAN")
    return load_vqgan(inputs.vqgan)


def load_vqgan(path: Path) -> VQGAN:
    """Loads the best weights of a tokenizer's run, the tokenizer of a model, or a folder with a VQGAN in any format.

    Raises:
        InvalidInputError: the run is not a tokenizer's, or has not been evaluated yet.
        ModelError: the folder holds no VQGAN.
    """
    if (path / MANIFEST_FILE).is_file():
        return VQGAN.load(ModelFolder.open(path).vqgan_folder)
    if not (path / SETTINGS_FILE).is_file():
        return VQGAN.load(path)
    config = load_run_settings(path, TokenizerSettings).config()
    untrained = jax.eval_shape(partial(vqgan.initialize, config), jax.random.key(0))
    return VQGAN(config, load_best(path, untrained))


def _make_batch(pictures: PictureSource, settings: TokenizerSettings, step: int) -> Batch:
    size = settings.batch_size
    batch = {"pixels": pictures.batch(step * size, size)}
    if settings.perceptual or settings.adversarial:
        batch["corners"] = generator_at(settings.seed, _STREAM, step).random((size, 2), np.float32)
    return batch


def _bytes(pixels: Float[np.ndarray, "*pictures 3"]) -> UInt8[np.ndarray, "*pictures 3"]:
    """Converts pixels in [0, 1] to bytes."""
    return (pixels * 255).round().astype(np.uint8)
