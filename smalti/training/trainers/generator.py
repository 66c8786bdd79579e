"""Training the generator: a transformer that learns to write image tokens after a caption."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax
from jaxtyping import Array, Float
from PIL import Image
from pydantic import Field

from smalti.engines.decoder import DecoderEngine
from smalti.engines.encoder import EncoderEngine
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate
from smalti.models import bart
from smalti.models.bart import DalleBart, DalleBartConfig
from smalti.models.layers import Parameters, compute_dtype
from smalti.models.vqgan import VQGAN, VQGANConfig
from smalti.parameters import SamplingParameters
from smalti.text.tokenizer import TextTokenizer
from smalti.training.batches.captioned import CaptionBatches, Captioned, evaluation_batches
from smalti.training.batches.text_tokenizer import MIN_VOCABULARY_SIZE
from smalti.training.loop.optimizers import make_optimizer
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.loop.sheets import sheet
from smalti.training.loop.step import Batch, Extra, Metrics, SteppedTrainee, Stepper, Task
from smalti.validation import Strict

_SHEET_CANDIDATES = 8
_SHEET_SEED = 1


class BartSizes(Strict):
    """The sizes of the network, by their names in `config.json`; the tokenizers give the others."""

    d_model: Count
    encoder_layers: Count
    decoder_layers: Count
    encoder_attention_heads: Count
    decoder_attention_heads: Count
    encoder_ffn_dim: Count
    decoder_ffn_dim: Count
    max_text_length: Annotated[int, Field(ge=3)] = 64
    init_std: Annotated[float, Field(gt=0)] = 0.02


class GeneratorSettings(RunSettings):
    """A run that trains a generator."""

    trains: Literal["generator"] = "generator"
    model: BartSizes
    vocabulary_size: Annotated[int, Field(ge=MIN_VOCABULARY_SIZE)] = 512
    """Of the text, at most; it is learnt from the captions."""
    pictures: Count = 100_000
    """How many pictures of a composed world are encoded to train on; of other data all are."""
    blank_captions: Share = 0.1
    replaced_tokens: Share = 0.1
    remat: bool = False
    """Whether activations are computed again in the backward pass, to save memory."""
    prompts: tuple[str, ...] = ()
    """What the sample sheets show: eight pictures of each."""
    sampling: SamplingParameters = SamplingParameters()
    """How the sheets are drawn, and how the exported model draws where nobody asks for anything else."""

    def config(self, vocabulary_size: int, vqgan: VQGANConfig) -> DalleBartConfig:
        """Returns the model's configuration for its two tokenizers; raises `ConfigError` when it is impossible."""
        return DalleBartConfig.from_fields(
            {
                **self.model.model_dump(),
                "encoder_vocab_size": vocabulary_size,
                "image_vocab_size": vqgan.n_embed,
                "image_length": vqgan.tokens,
                "decoder_start_token_id": vqgan.n_embed,
                "normalize_text": True,
            }
        )


class GeneratorTask(Task):
    """The network and its loss."""

    def __init__(self, config: DalleBartConfig, seed: int = 0, *, remat: bool = False) -> None:
        self.config = config
        self._seed = seed
        # A large model would take long to compile layer by layer; on a CPU nobody trains one.
        unroll = jax.default_backend() == "cpu"
        self._options: dict[str, Any] = {"dtype": compute_dtype(), "remat": remat, "unroll": unroll}

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns untrained weights, and nothing to remember."""
        return bart.initialize(self.config, jax.random.key(self._seed)), {}

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Returns the mean cross-entropy of the next token, in nats, when all before it are given."""
        mask = batch["attention_mask"]
        encoding = bart.encode(self.config, params, batch["input_ids"], mask, **self._options)
        logits = bart.logits(self.config, params, encoding, mask, batch["decoder_input_ids"], **self._options)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return losses.mean(), ({}, {})


class GeneratorTrainee(SteppedTrainee):
    """Trains a generator on captions and image tokens."""

    def __init__(
        self, settings: GeneratorSettings, data: Path, tokenizer: TextTokenizer, vqgan: VQGAN
    ) -> None:
        """Makes the untrained model and opens the data.

        Args:
            settings: of the run.
            data: the folder of encoded shards.
            tokenizer: of the text.
            vqgan: whose tokens the data has; draws the sheets.

        Raises:
            InvalidInputError: the data is not of this tokenizer.
        """
        config = settings.config(tokenizer.vocabulary_size, vqgan.config)
        self.task = GeneratorTask(config, settings.seed, remat=settings.remat)
        tokens, codes = config.image_length, config.image_vocab_size
        super().__init__(
            Stepper(self.task, make_optimizer(settings.optimizer, settings.steps), settings.accumulate),
            CaptionBatches(
                Captioned.read(data, "train", tokens, codes),
                tokenizer,
                codes,
                settings.batch_size,
                settings.seed,
                settings.blank_captions,
                settings.replaced_tokens,
            ),
        )
        self._evaluation = evaluation_batches(
            data, tokenizer, tokens, codes, settings.batch_size, settings.held_out
        )
        self._loss = jax.jit(lambda params, batch: self.task.loss(params, batch)[0])
        self._tokenizer, self._vqgan, self._settings = tokenizer, vqgan, settings
        self.tokens_per_step = settings.batch_size * tokens

    def evaluate(self) -> dict[str, float]:
        """Measures the losses of `evaluation_batches`, in nats a token; nothing is replaced or blank."""
        return {
            name: float(np.mean([self._loss_of(batch) for batch in batches]))
            for name, batches in self._evaluation.items()
        }

    def sheet(self) -> Image.Image | None:
        """Draws a row for each prompt with the generator that serves, and the weights as they are now."""
        if not self._settings.prompts:
            return None
        model = DalleBart(self.task.config, jax.device_put(self.weights, jax.devices()[0]))
        encoder = EncoderEngine(model, self._tokenizer)
        engine = GeneratorEngine.of(model, encoder.unconditional, slots=_SHEET_CANDIDATES)
        try:
            candidates = [
                Candidate(_SHEET_SEED, index, self._settings.sampling) for index in range(_SHEET_CANDIDATES)
            ]
            tokens = [
                engine.generate(encoder.encode(prompt), candidates) for prompt in self._settings.prompts
            ]
        finally:
            engine.close()
        return sheet(DecoderEngine(self._vqgan).decode(np.concatenate(tokens)), columns=2 * _SHEET_CANDIDATES)

    def _loss_of(self, batch: Batch) -> float:
        return float(self._loss(self.weights, batch))
