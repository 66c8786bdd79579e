"""CLIP's two towers as open_clip builds them, for the plain configurations (Radford et al. 2021, section 2.4).

Importing open_clip takes longer than all the rest of the ranker: it imports torchvision, timm and torch's compiler. So
the usual networks are here, a text transformer beside a vision transformer or a residual network; whatever else a
configuration asks for is left to open_clip. Modules and parameters have the names of its checkpoints, and the results
are the same to the last bit (`tests/models/test_clip_network.py`).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn import functional

_TOWERS = {"text_cfg", "vision_cfg"}
_MODEL = {"embed_dim", "quick_gelu", "init_logit_bias"} | _TOWERS
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "tokenizer_kwargs"}
_VISION = {"image_size", "patch_size", "width", "head_width", "layers"}
_REQUIRED = (
    ("embed_dim",),
    ("image_size", "width", "layers"),
    ("context_length", "vocab_size", "width", "heads", "layers"),
)


def is_plain(config: Mapping[str, Any]) -> bool:
    """Returns whether `PlainClip` is the network of a `model_cfg`."""
    text, vision = config["text_cfg"], config["vision_cfg"]
    known = config.keys() <= _MODEL and text.keys() <= _TEXT and vision.keys() <= _VISION
    parts = zip(_REQUIRED, (config, vision, text), strict=True)
    complete = all(name in part for names, part in parts for name in names)
    square = isinstance(vision.get("image_size"), int)
    resnet = isinstance(vision.get("layers"), list)
    return known and complete and square and (resnet or isinstance(vision.get("patch_size"), int))


class QuickGelu(nn.Module):
    """OpenAI's approximation of GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns `x * sigmoid(1.702 x)`."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A transformer's block: attention, then two products, each after a layer norm and with a residual connection."""

    def __init__(self, width: int, heads: int, activation: type[nn.Module]) -> None:
        """Makes a block of a width."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        layers = {
            "c_fc": nn.Linear(width, 4 * width),
            "gelu": activation(),
            "c_proj": nn.Linear(4 * width, width),
        }
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(
        self,
        x: Float[torch.Tensor, "batch positions width"],
        mask: Float[torch.Tensor, "positions positions"] | None = None,
    ) -> Float[torch.Tensor, "batch positions width"]:
        """Returns the hidden states after this block; the mask is added to the scores."""
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, heads: int, layers: int, activation: type[nn.Module]) -> None:
        """Makes the blocks."""
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads, activation) for _ in range(layers)])

    def forward(
        self,
        x: Float[torch.Tensor, "batch positions width"],
        mask: Float[torch.Tensor, "positions positions"] | None = None,
    ) -> Float[torch.Tensor, "batch positions width"]:
        """Returns the hidden states after all blocks."""
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """The image tower as a transformer over patches; the first position is the picture's."""

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        width: int,
        heads: int,
        layers: int,
        out: int,
        activation: type[nn.Module],
    ) -> None:
        """Makes the tower of pictures of `size` pixels, cut into patches of `patch` pixels."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, layers, activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, out))

    def forward(self, pixels: Float[torch.Tensor, "batch 3 size size"]) -> Float[torch.Tensor, "batch out"]:
        """Returns the features of pictures, not normalized."""
        x = self.conv1(pixels).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.view(1, 1, -1).expand(len(x), -1, -1)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding)
        return self.ln_post(self.transformer(x))[:, 0] @ self.proj


class Bottleneck(nn.Module):
    """Three convolutions with a residual connection; an average pool before a convolution reduces the size."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        """Makes a block that reduces height and width by `stride`."""
        super().__init__()
        out = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inputs != out:
            layers = {
                "-1": nn.AvgPool2d(stride),
                "0": nn.Conv2d(inputs, out, 1, bias=False),
                "1": nn.BatchNorm2d(out),
            }
            self.downsample = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Float[torch.Tensor, "batch inputs height width"]) -> torch.Tensor:
        """Returns the output of the block with the residual added."""
        h = functional.relu(self.bn1(self.conv1(x)))
        h = functional.relu(self.bn2(self.conv2(h)))
        h = self.bn3(self.conv3(self.avgpool(h)))
        return functional.relu(h + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    """Attention of the mean position over all positions, instead of a mean."""

    def __init__(self, side: int, width: int, heads: int, out: int) -> None:
        """Makes the pool of `side * side` positions."""
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, width))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, out)
        self.heads = heads

    def forward(self, x: Float[torch.Tensor, "batch width rows columns"]) -> Float[torch.Tensor, "batch out"]:
        """Returns the features of pictures."""
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x]) + self.positional_embedding[:, None]
        attended, _ = functional.multi_head_attention_forward(
            query=x,
            key=x,
            value=x,
            embed_dim_to_check=x.shape[-1],
            num_heads=self.heads,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            training=False,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )
        return attended[0]


class ResidualNetwork(nn.Module):
    """The image tower as a residual network with a stem of three convolutions."""

    def __init__(self, *, size: int, width: int, heads: int, layers: Sequence[int], out: int) -> None:
        """Makes the tower of pictures of `size` pixels, with the given number of blocks at each of four sizes."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        inputs = width
        for level, blocks in enumerate(layers):
            planes, made = width * 2**level, []
            for block in range(blocks):
                made.append(Bottleneck(inputs, planes, 2 if level and not block else 1))
                inputs = planes * Bottleneck.expansion
            self.add_module(f"layer{level + 1}", nn.Sequential(*made))
        self.attnpool = AttentionPool(size // 32, width * 32, heads, out)
        self._levels = len(layers)

    def forward(self, pixels: Float[torch.Tensor, "batch 3 size size"]) -> Float[torch.Tensor, "batch out"]:
        """Returns the features of pictures, not normalized."""
        x = pixels
        for number in range(1, 4):
            convolution, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            x = functional.relu(norm(convolution(x)))
        x = self.avgpool(x)
        for level in range(self._levels):
            x = getattr(self, f"layer{level + 1}")(x)
        return self.attnpool(x)


class PlainClip(nn.Module):
    """A CLIP for inference."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Makes the network of a `model_cfg` for which `is_plain` holds."""
        super().__init__()
        text, vision = config["text_cfg"], config["vision_cfg"]
        activation = QuickGelu if config.get("quick_gelu") else nn.GELU
        size, width, layers = vision["image_size"], vision["width"], vision["layers"]
        out, head_width = config["embed_dim"], vision.get("head_width", 64)
        self.visual: nn.Module
        if isinstance(layers, list):
            heads = width * 32 // head_width
            self.visual = ResidualNetwork(size=size, width=width, heads=heads, layers=layers, out=out)
        else:
            self.visual = VisionTransformer(
                size=size,
                patch=vision["patch_size"],
                width=width,
                heads=width // head_width,
                layers=layers,
                out=out,
                activation=activation,
            )
        self.transformer = Transformer(text["width"], text["heads"], text["layers"], activation)
        self.token_embedding = nn.Embedding(text["vocab_size"], text["width"])
        self.positional_embedding = nn.Parameter(torch.empty(text["context_length"], text["width"]))
        self.ln_final = nn.LayerNorm(text["width"])
        self.text_projection = nn.Parameter(torch.empty(text["width"], out))
        self.logit_scale = nn.Parameter(torch.empty([]))
        self.logit_bias = None if config.get("init_logit_bias") is None else nn.Parameter(torch.empty([]))

    def encode_image(
        self, pixels: Float[torch.Tensor, "batch 3 size size"], normalize: bool = False
    ) -> Float[torch.Tensor, "batch out"]:
        """Returns the features of pictures."""
        features = self.visual(pixels)
        return functional.normalize(features, dim=-1) if normalize else features

    def encode_text(
        self, ids: Int[torch.Tensor, "batch positions"], normalize: bool = False
    ) -> Float[torch.Tensor, "batch out"]:
        """Returns the features of texts, those at their end, which has the highest id."""
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf"), device=x.device).triu_(1)
        x = self.ln_final(self.transformer(x, mask))
        features = x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)] @ self.text_projection
        return functional.normalize(features, dim=-1) if normalize else features
