"""Training the generator: a transformer that learns to predict image tokens from a caption."""

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
from smalti.training.batches.captioned import CaptionBatches, CaptionedTokens, evaluation_batches
from smalti.training.batches.text_tokenizer import MIN_VOCABULARY_SIZE
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.loop.sheets import sheet
from smalti.training.loop.step import Extra, Metrics, Objective
from smalti.training.loop.trainee import JaxTrainee
from smalti.validation import Strict

_SHEET_CANDIDATES = 8
_SHEET_SEED = 1


class BartSizes(Strict):
    """Sizes of the network, with their names in `config.json`; the tokenizers determine the others."""

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
    """Settings of a generator's run."""

    trains: Literal["generator"] = "generator"
    model: BartSizes
    vocabulary_size: Annotated[int, Field(ge=MIN_VOCABULARY_SIZE)] = 512
    """Maximal number of ids of the text tokenizer, which is learned from the captions."""
    pictures: Count = 100_000
    """Number of pictures of a world that are encoded for training; of other data, all pictures are used."""
    blank_captions: Share = 0.1
    replaced_tokens: Share = 0.1
    remat: bool = False
    """Whether activations are recomputed in the backward pass, to save memory."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample sheets, with eight pictures each."""
    sampling: SamplingParameters = SamplingParameters()
    """Sampling values of the sheets, and defaults of the exported model."""

    def config(self, vocabulary_size: int, vqgan: VQGANConfig) -> DalleBartConfig:
        """Returns the configuration of the model; raises `ConfigError` if the sizes do not fit together.

        Args:
            vocabulary_size: number of ids of the text tokenizer.
            vqgan: configuration of the image tokenizer.
        """
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


class GeneratorObjective(Objective):
    """The network and its loss."""

    def __init__(self, config: DalleBartConfig, seed: int = 0, *, remat: bool = False) -> None:
        self.config = config
        self._seed = seed
        # Unrolled layers run faster on a CPU. Elsewhere models are large and would take long to compile so.
        unroll = jax.default_backend() == "cpu"
        self._options: dict[str, Any] = {"dtype": compute_dtype(), "remat": remat, "unroll": unroll}

    def initialize(self) -> tuple[Parameters, Any]:
        """Returns untrained weights, and an empty memory."""
        return bart.initialize(self.config, jax.random.key(self._seed)), {}

    def loss(
        self, params: Parameters, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], tuple[Metrics, Extra]]:
        """Returns the mean cross-entropy of the next token, in nats, given all tokens before it."""
        mask = batch["attention_mask"]
        encoding = bart.encode(self.config, params, batch["input_ids"], mask, **self._options)
        logits = bart.logits(self.config, params, encoding, mask, batch["decoder_input_ids"], **self._options)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return losses.mean(), ({}, {})


class GeneratorTrainee(JaxTrainee):
    """A generator in training."""

    def __init__(
        self, settings: GeneratorSettings, *, data: Path, tokenizer: TextTokenizer, vqgan: VQGAN
    ) -> None:
        """Makes the untrained model and opens the data.

        Args:
            settings: of the run.
            data: folder of encoded shards.
            tokenizer: text tokenizer.
            vqgan: image tokenizer with which the data was encoded; decodes the sheets.

        Raises:
            InvalidInputError: the data was encoded with another image tokenizer, or has no held-out split.
        """
        config = settings.config(tokenizer.vocabulary_size, vqgan.config)
        tokens, codes = config.image_length, config.image_vocab_size
        super().__init__(
            GeneratorObjective(config, settings.seed, remat=settings.remat),
            settings,
            CaptionBatches(
                CaptionedTokens.load(data, "train", tokens, codes),
                tokenizer,
                codes=codes,
                size=settings.batch_size,
                seed=settings.seed,
                blank_captions=settings.blank_captions,
                replaced_tokens=settings.replaced_tokens,
            ),
            tokens_per_step=settings.batch_size * tokens,
            apart=True,
        )
        self._evaluation = evaluation_batches(
            data, tokenizer, tokens, codes, settings.batch_size, settings.held_out
        )
        self._config, self._settings = config, settings
        self._tokenizer, self._vqgan = tokenizer, vqgan

    def evaluate(self) -> dict[str, float]:
        """Measures the losses of `evaluation_batches` in nats per token. No token is replaced, no caption blank."""
        return {
            name: float(np.mean([self.loss_of(batch) for batch in batches]))
            for name, batches in self._evaluation.items()
        }

    def sheet(self) -> Image.Image | None:
        """Generates a row of pictures for each prompt, with the engine that also serves the exported model."""
        if not self._settings.prompts:
            return None
        model = DalleBart(self._config, jax.device_put(self.weights, jax.devices()[0]))
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
