"""Training the ranker: open_clip's model learns which of many pictures a caption belongs to."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field, model_validator

from smalti.errors import CheckpointError, ConfigError
from smalti.models.clip import MERGES_FILE
from smalti.training.batches.clip_tokenizer import MIN_VOCABULARY_SIZE, vocabulary_of
from smalti.training.batches.pairs import Pairs, PairSource
from smalti.training.batches.prefetch import Prefetched
from smalti.training.batches.redrawing import Redrawing
from smalti.training.loop.optimizers import schedule
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.loop.sheets import sheet
from smalti.validation import Strict

# Not before `smalti.models.clip`, which makes it importable.
import open_clip  # isort: skip
from open_clip.tokenizer import SimpleTokenizer  # isort: skip

MEAN = DEVIATION = (0.5, 0.5, 0.5)
_MAX_LOGIT_SCALE = float(np.log(100))
"""CLIP's own limit (Radford et al. 2021, section 2.5)."""
_SHEET_CAPTIONS = 24
_SHEET_COLUMNS = 8


class VisionSizes(Strict):
    """The sizes of the image tower, by their names in open_clip's `vision_cfg`."""

    image_size: Count
    layers: Count | tuple[Count, Count, Count, Count]
    """Of a transformer; four numbers are the blocks of a ResNet's stages."""
    width: Count
    head_width: Count = 64
    patch_size: Count = 16
    """Of a transformer."""


class TextSizes(Strict):
    """The sizes of the text tower, by their names in open_clip's `text_cfg`."""

    context_length: Annotated[int, Field(ge=3)] = 77
    width: Count
    heads: Count
    layers: Count


class RankerSizes(Strict):
    """The sizes of the model, by their names in open_clip's configurations; the merges give the vocabulary."""

    embed_dim: Count
    vision_cfg: VisionSizes
    text_cfg: TextSizes


class RankerSettings(RunSettings):
    """A run that trains a ranker."""

    trains: Literal["ranker"] = "ranker"
    counted: ClassVar[str] = "pictures"
    # The loss compares all pictures of a batch, so it cannot be computed in parts; Muon is the JAX trainers'.
    accumulate: Literal[1] = 1
    model: RankerSizes
    vocabulary_size: Annotated[int, Field(ge=MIN_VOCABULARY_SIZE)] = 1024
    """Of the text, at most; it is learnt from the captions."""
    alike: Count = 4
    """Samples of a composed world that come together and differ in one aspect from the first of them; 1 for none."""
    redrawn: Share = 0.0
    """The share of pictures that are seen as the image tokenizer draws them."""
    damaged: Share = 0.0
    """Pictures with mixed-up tokens that are added to a batch, as a share of it; at most `redrawn`."""

    @model_validator(mode="after")
    def _can_be_done(self) -> "RankerSettings":
        if self.optimizer.name != "adamw":
            raise ValueError("optimizer.name: the ranker is trained with adamw alone")
        if self.damaged > self.redrawn:
            raise ValueError(
                f"damaged: {self.damaged} is more than redrawn, {self.redrawn}; damaged pictures are made of those"
            )
        return self

    def config(self, vocabulary_size: int) -> dict[str, Any]:
        """Returns what `open_clip_config.json` holds."""
        model = self.model.model_dump(mode="json")
        model["text_cfg"] |= {
            "vocab_size": vocabulary_size,
            "tokenizer_kwargs": {"bpe_path": MERGES_FILE},
        }
        prepared = {
            "size": self.model.vision_cfg.image_size,
            "mean": list(MEAN),
            "std": list(DEVIATION),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        }
        return {"model_cfg": model, "preprocess_cfg": prepared}


class RankerLoss(open_clip.ClipLoss):
    """open_clip's loss, with pictures that no caption belongs to.

    They stand among the pictures that a caption is compared with, and ask for no caption themselves: what extra
    captions are to pictures in Yuksekgonul et al. 2023 (https://arxiv.org/abs/2210.01936, section 4). Without such
    pictures it is open_clip's loss.
    """

    def get_logits(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the logits of the pictures with a caption, and those of the captions, which see all pictures."""
        logits, by_text = super().get_logits(image_features, text_features, logit_scale, logit_bias)
        return logits[: len(text_features)], by_text


class RankerBatch(NamedTuple):
    """What a step looks at."""

    pixels: UInt8[np.ndarray, "pictures height width 3"]
    """The captions' pictures in their order, and after them damaged ones."""
    text: torch.Tensor
    """`[captions, context_length]`."""


class RankerTrainee:
    """Trains a ranker on pictures with captions."""

    def __init__(
        self,
        settings: RankerSettings,
        pairs: PairSource,
        tokenizer: SimpleTokenizer,
        redrawing: Redrawing | None = None,
    ) -> None:
        """Makes the untrained model and the held-out batches.

        Args:
            settings: of the run.
            pairs: pictures with captions, of the model's resolution.
            tokenizer: of the text.
            redrawing: shows pictures as the image tokenizer draws them; None to leave them as they are.

        Raises:
            ConfigError: open_clip cannot make a model of these sizes.
            InvalidInputError: the data has too few pictures.
        """
        self.config = settings.config(vocabulary_of(tokenizer))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = untrained(self.config, settings.seed).to(self._device)
        # Convolutions on a CPU are several times faster so.
        self.model.visual.to(memory_format=torch.channels_last)
        self._tokenizer, self._redrawing = tokenizer, redrawing
        self._loss = RankerLoss()
        self._optimizer = _optimizer(self.model, settings)
        self._largest_gradient = settings.optimizer.largest_gradient
        self._rates = np.asarray(
            schedule(settings.optimizer.learning_rate, settings.optimizer, settings.steps)(
                np.arange(settings.steps)
            )
        )
        self._steps = 0
        self._batch = Prefetched(lambda number: self._prepared(pairs.batch(number), number))
        self._held_out = [
            self._prepared(batch, number) for number, batch in enumerate(pairs.held_out(settings.held_out))
        ]
        self.tokens_per_step = settings.batch_size

    @property
    def state(self) -> dict[str, Any]:
        """Weights, the optimizer's moments, and the number of steps, as arrays."""
        moments = {
            kind: {name: _array(self._optimizer.state[weight][kind]) for name, weight in self._named()}
            for kind in ("exp_avg", "exp_avg_sq")
        }
        return {"step": np.array(self._steps, np.int32), "model": self.weights, "optimizer": moments}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        load_weights(self.model, state["model"])
        self._steps = int(state["step"])
        for name, weight in self._named():
            kept = self._optimizer.state[weight]
            kept["step"].fill_(self._steps)
            for kind, arrays in state["optimizer"].items():
                kept[kind].copy_(torch.from_numpy(np.array(arrays[name])))

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The model's weights and running statistics, by their names."""
        return weights_of(self.model)

    def step(self, number: int) -> dict[str, float]:
        """Takes a step on the captions of its number."""
        batch = self._batch(number)
        for group in self._optimizer.param_groups:
            group["lr"] = float(self._rates[number])
        self.model.train()
        pictures, texts = self._features(batch)
        loss = self._loss(pictures, texts, self.model.logit_scale.exp())
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._largest_gradient)
        self._optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        self._steps += 1
        return {
            "loss": loss.item(),
            "gradient_norm": norm.item(),
            "logit_scale": self.model.logit_scale.exp().item(),
        }

    def evaluate(self) -> dict[str, float]:
        """Measures the loss on held-out batches, and how often the right picture is the best.

        "right_picture" is the share of captions that score their own picture above all others of the batch, damaged
        ones too. "above_damaged" is the share of damaged pictures that are not taken for a good one: the caption that
        fits it best scores its own picture above it.
        """
        measured: dict[str, list[float]] = {"loss": [], "right_picture": []}
        for loss, scores in map(self._score, self._held_out):
            captions = len(scores)
            measured["loss"].append(loss)
            measured["right_picture"].append((scores.argmax(1) == np.arange(captions)).mean())
            if scores.shape[1] > captions:
                damaged = scores[:, captions:]
                above = np.diag(scores)[damaged.argmax(0)] > damaged.max(0)
                measured.setdefault("above_damaged", []).append(above.mean())
        return {name: float(np.mean(values)) for name, values in measured.items()}

    def sheet(self) -> Image.Image:
        """Lays a row for each of some held-out captions: its own picture, and those that score best."""
        batch = self._held_out[0]
        _, scores = self._score(batch)
        rows = []
        for caption in range(min(len(scores), _SHEET_CAPTIONS)):
            best = np.argsort(-scores[caption], kind="stable")[: _SHEET_COLUMNS - 1]
            rows.append(batch.pixels[[caption, *best]])
        return sheet(np.concatenate(rows), len(rows[0]))

    def _prepared(self, pairs: Pairs, number: int) -> RankerBatch:
        pixels = pairs.pixels if self._redrawing is None else self._redrawing(pairs.pixels, number)
        return RankerBatch(pixels, self._tokenizer(pairs.captions))

    def _features(self, batch: RankerBatch) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.from_numpy(batch.pixels).to(self._device).permute(0, 3, 1, 2)
        # As torchvision's ToTensor and Normalize, by which open_clip prepares pictures.
        mean, deviation = (
            torch.tensor(each, device=self._device).reshape(3, 1, 1) for each in (MEAN, DEVIATION)
        )
        pictures = self.model.encode_image((pixels / 255 - mean) / deviation, normalize=True)
        return pictures, self.model.encode_text(batch.text.to(self._device), normalize=True)

    def _score(self, batch: RankerBatch) -> tuple[float, Float[np.ndarray, "captions pictures"]]:
        """Returns the loss, and every caption's cosine with every picture, as the exported model would."""
        self.model.eval()
        with torch.no_grad():
            pictures, texts = self._features(batch)
            loss = self._loss(pictures, texts, self.model.logit_scale.exp())
            return float(loss), (texts @ pictures.T).cpu().numpy()

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.model.named_parameters())


def untrained(config: Mapping[str, Any], seed: int) -> Any:
    """Makes open_clip's model, which has no types; the same seed gives the same weights.

    Raises:
        ConfigError: it has no model of these sizes.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return open_clip.CLIP(**config["model_cfg"])
    except Exception as error:  # open_clip checks sizes by assertions, and by what torch makes of them.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"model: open_clip cannot make one of these sizes ({reason})") from error


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns a model's weights and running statistics as arrays."""
    return {name: _array(tensor) for name, tensor in model.state_dict().items()}


def load_weights(model: torch.nn.Module, weights: Mapping[str, Float[np.ndarray, "..."]]) -> None:
    """Puts weights into a model.

    Raises:
        CheckpointError: they are another model's.
    """
    try:
        model.load_state_dict({name: torch.from_numpy(np.array(each)) for name, each in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint is of another model ({' '.join(str(error).split())[:200]})"
        ) from None


def _array(tensor: torch.Tensor) -> np.ndarray:
    # A copy, for the optimizer goes on writing into the tensor. JAX, which restores checkpoints, has no 64 bits.
    array = tensor.detach().cpu().numpy().copy()
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _optimizer(model: torch.nn.Module, settings: RankerSettings) -> torch.optim.AdamW:
    """Makes AdamW with moments of zero; weight decay pulls on products, not on scales, biases and tables."""
    chosen = settings.optimizer
    products: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        (rest if weight.ndim < 2 or "embedding" in name else products).append(weight)
    optimizer = torch.optim.AdamW(
        [{"params": products, "weight_decay": chosen.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        betas=(chosen.beta1, chosen.beta2),
    )
    for weight in (*products, *rest):
        # As its first step would, so that the state has the same shape from the start.
        optimizer.state[weight] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    return optimizer
