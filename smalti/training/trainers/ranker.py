"""Training the ranker: open_clip's model learns which picture of a batch belongs to which caption."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Array, Float, Num, UInt8
from PIL import Image
from pydantic import Field, model_validator

from smalti.errors import CheckpointError, ConfigError
from smalti.models.clip import MERGES_FILE
from smalti.models.open_clip_models import SimpleTokenizer, open_clip
from smalti.training.batches.clip_tokenizer import MIN_VOCABULARY_SIZE, vocabulary_of
from smalti.training.batches.pairs import Pairs, PairSource
from smalti.training.batches.reconstruction import Reconstructor
from smalti.training.loop.optimizers import schedule
from smalti.training.loop.settings import Count, RunSettings, Share
from smalti.training.loop.sheets import sheet
from smalti.training.prefetching import Prefetched
from smalti.validation import Strict

MEAN = DEVIATION = (0.5, 0.5, 0.5)
_MAX_LOGIT_SCALE = float(np.log(100))
"""Limit of CLIP itself (Radford et al. 2021, section 2.5)."""
_SHEET_CAPTIONS = 24
_SHEET_COLUMNS = 8


class VisionSizes(Strict):
    """Sizes of the image tower, with their names in open_clip's `vision_cfg`."""

    image_size: Count
    layers: Count | tuple[Count, Count, Count, Count]
    """Layers of a transformer, or the blocks of a ResNet's four stages."""
    width: Count
    head_width: Count = 64
    patch_size: Count = 16
    """Side of a transformer's patches."""


class TextSizes(Strict):
    """Sizes of the text tower, with their names in open_clip's `text_cfg`."""

    context_length: Annotated[int, Field(ge=3)] = 77
    width: Count
    heads: Count
    layers: Count


class RankerSizes(Strict):
    """Sizes of the model, with their names in open_clip's configuration; the merges determine the vocabulary."""

    embed_dim: Count
    vision_cfg: VisionSizes
    text_cfg: TextSizes


class RankerSettings(RunSettings):
    """Settings of a ranker's run."""

    trains: Literal["ranker"] = "ranker"
    counted: ClassVar[str] = "pictures"
    # The loss compares all pictures of a batch with each other, so it cannot be computed in parts.
    accumulate: Literal[1] = 1
    model: RankerSizes
    vocabulary_size: Annotated[int, Field(ge=MIN_VOCABULARY_SIZE)] = 1024
    """Maximal number of ids of the text tokenizer, which is learned from the captions."""
    alike: Count = 4
    """Size of a group of pictures of a world that differ from the first in one aspect; 1 for no groups."""
    redrawn: Share = 0.0
    """Share of the pictures that are replaced by their reconstruction from tokens."""
    damaged: Share = 0.0
    """Number of damaged pictures added to a batch, as a share of the batch; at most `redrawn`."""

    @model_validator(mode="after")
    def _can_be_done(self) -> "RankerSettings":
        if self.optimizer.name != "adamw":
            raise ValueError(f"optimizer.name: must be 'adamw' for the ranker, not {self.optimizer.name!r}")
        if self.damaged > self.redrawn:
            raise ValueError(
                f"damaged: must be at most redrawn, {self.redrawn}, not {self.damaged}; "
                "redrawn pictures are what gets damaged"
            )
        return self

    def config(self, vocabulary_size: int) -> dict[str, Any]:
        """Returns the content of `open_clip_config.json`."""
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
    """open_clip's loss, with additional pictures that belong to no caption.

    Each caption is compared with these pictures too, but they are compared with no caption themselves. Yuksekgonul et
    al. 2023 (https://arxiv.org/abs/2210.01936, section 4) add captions in the same way. Without additional pictures it
    is exactly open_clip's loss.
    """

    def get_logits(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        logit_scale: torch.Tensor,
        logit_bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the logits of the captioned pictures, and those of the captions over all pictures."""
        logits, by_text = super().get_logits(image_features, text_features, logit_scale, logit_bias)
        return logits[: len(text_features)], by_text


class RankerBatch(NamedTuple):
    """The inputs of a step."""

    pixels: UInt8[np.ndarray, "pictures height width 3"]
    """Pictures in the order of their captions, followed by damaged ones."""
    text: torch.Tensor
    """Token ids `[captions, context_length]`."""


class RankerTrainee:
    """A ranker in training."""

    keeps_newest = False

    def __init__(
        self,
        settings: RankerSettings,
        *,
        pairs: PairSource,
        tokenizer: SimpleTokenizer,
        reconstructor: Reconstructor | None = None,
    ) -> None:
        """Makes the untrained model and the held-out batches.

        Args:
            settings: of the run.
            pairs: pictures with captions, with the model's resolution.
            tokenizer: text tokenizer.
            reconstructor: replaces some pictures by their reconstruction from tokens; None to use all as they are.

        Raises:
            ConfigError: open_clip has no model of these sizes.
            InvalidInputError: the data has too few pictures.
        """
        self.config = settings.config(vocabulary_of(tokenizer))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = untrained(self.config, settings.seed).to(self._device)
        # Convolutions on a CPU are several times faster in this layout.
        self.model.visual.to(memory_format=torch.channels_last)
        self._tokenizer, self._reconstructor = tokenizer, reconstructor
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
        """Weights, moments of the optimizer, and number of steps, as arrays."""
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
        """Weights and running statistics of the model by name."""
        return weights_of(self.model)

    def step(self, number: int) -> dict[str, float]:
        """Takes a step on the batch of that number."""
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
        """Measures the loss on held-out batches, and how often the right picture has the highest score.

        "right_picture" is the share of captions that score their own picture above all others of the batch, damaged
        ones included. "above_damaged" is the share of damaged pictures that lose: the caption that scores the damaged
        picture highest scores its own picture higher still.
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
        """Shows a row for each of some held-out captions: its own picture, then the best-scoring ones."""
        batch = self._held_out[0]
        _, scores = self._score(batch)
        rows = []
        for caption in range(min(len(scores), _SHEET_CAPTIONS)):
            best = np.argsort(-scores[caption], kind="stable")[: _SHEET_COLUMNS - 1]
            rows.append(batch.pixels[[caption, *best]])
        return sheet(np.concatenate(rows), len(rows[0]))

    def _prepared(self, pairs: Pairs, number: int) -> RankerBatch:
        pixels = pairs.pixels if self._reconstructor is None else self._reconstructor(pairs.pixels, number)
        return RankerBatch(pixels, self._tokenizer(pairs.captions))

    def _features(self, batch: RankerBatch) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.from_numpy(batch.pixels).to(self._device).permute(0, 3, 1, 2)
        # The same as torchvision's ToTensor and Normalize, with which open_clip prepares pictures.
        mean, deviation = (
            torch.tensor(each, device=self._device).reshape(3, 1, 1) for each in (MEAN, DEVIATION)
        )
        pictures = self.model.encode_image((pixels / 255 - mean) / deviation, normalize=True)
        return pictures, self.model.encode_text(batch.text.to(self._device), normalize=True)

    def _score(self, batch: RankerBatch) -> tuple[float, Float[np.ndarray, "captions pictures"]]:
        """Returns the loss, and the cosine of every caption with every picture, as the exported model computes them."""
        self.model.eval()
        with torch.no_grad():
            pictures, texts = self._features(batch)
            loss = self._loss(pictures, texts, self.model.logit_scale.exp())
            return float(loss), (texts @ pictures.T).cpu().numpy()

    def _named(self) -> list[tuple[str, torch.nn.Parameter]]:
        return list(self.model.named_parameters())


def untrained(config: Mapping[str, Any], seed: int) -> Any:
    """Makes an untrained model of open_clip, which has no types; the same seed gives the same weights.

    Raises:
        ConfigError: open_clip has no model of these sizes.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return open_clip.CLIP(**config["model_cfg"])
    except Exception as error:  # open_clip checks sizes by assertions, or leaves the check to torch.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"model: open_clip has no model of these sizes ({reason})") from error


def weights_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Returns weights and running statistics of a model as arrays."""
    return {name: _array(tensor) for name, tensor in model.state_dict().items()}


def load_weights(model: torch.nn.Module, weights: Mapping[str, Num[Array | np.ndarray, "..."]]) -> None:
    """Replaces the weights of a model.

    Raises:
        CheckpointError: the weights belong to another model.
    """
    try:
        model.load_state_dict({name: torch.from_numpy(np.array(each)) for name, each in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint belongs to another model ({' '.join(str(error).split())[:200]})"
        ) from None


def _array(tensor: torch.Tensor) -> np.ndarray:
    # A copy, since the optimizer keeps writing to the tensor. JAX, which restores checkpoints, has no 64-bit types.
    array = tensor.detach().cpu().numpy().copy()
    return array.astype(np.int32) if array.dtype == np.int64 else array


def _optimizer(model: torch.nn.Module, settings: RankerSettings) -> torch.optim.AdamW:
    """Makes AdamW with zero moments; weight decay applies to matrices, not to scales, biases and embeddings."""
    chosen = settings.optimizer
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        (rest if weight.ndim < 2 or "embedding" in name else matrices).append(weight)
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": chosen.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        betas=(chosen.beta1, chosen.beta2),
    )
    for weight in (*matrices, *rest):
        # AdamW would do this at its first step. Done here, the state has the same shape from the start.
        optimizer.state[weight] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    return optimizer
