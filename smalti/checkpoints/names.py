"""The names of tensors: what each of ours is called in each format that is read.

Our names are those of the original Flax checkpoints, joined with "/", with the layers of a stack stacked on
axis 0. A table is a list of substitutions, applied in order to our name; they give the name in the other
format, with `{layer}` in it where the other format keeps each layer by itself.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

Shape = tuple[int, ...]
Axes = tuple[int, ...]

LAYER = "{layer}"
"""Stands for a layer's number in the name of a tensor that a format keeps for each layer."""


@dataclass(frozen=True)
class Spelling:
    """How a format keeps one of our tensors.

    Attributes:
        names: its name there, or those of its layers in order.
        shape: the shape it, or each layer, has there.
        axes: the axis of theirs that each axis of ours (of its layer) is; None for the same order.
        stacked: whether the names are those of layers, which ours has stacked on axis 0.
    """

    names: tuple[str, ...]
    shape: Shape
    axes: Axes | None
    stacked: bool


@dataclass(frozen=True)
class NameTable:
    """How one format names the tensors.

    Attributes:
        substitutions: (regular expression, replacement), applied in order to our name of a tensor.
        kernel_axes: for a kernel of that many axes, the axis of theirs that each axis of ours is.
        ignored: their names that belong to something else, such as the losses of a training.
        neutral: their names of scales that our network does not have; each number of theirs has to be one.
    """

    substitutions: tuple[tuple[str, str], ...] = ()
    kernel_axes: tuple[tuple[int, Axes], ...] = ()
    ignored: str | None = None
    neutral: str | None = None

    def spell(self, expected: Mapping[str, Shape]) -> dict[str, Spelling]:
        """Returns how the format keeps our tensors, which are given by names and shapes."""
        return {name: self._spell(name, shape) for name, shape in expected.items()}

    def _spell(self, name: str, shape: Shape) -> Spelling:
        their_name = name
        for pattern, replacement in self.substitutions:
            their_name = re.sub(pattern, replacement, their_name)
        stacked = LAYER in their_name
        layers = range(shape[0]) if stacked else range(1)
        layer_shape = shape[1:] if stacked else shape
        axes = dict(self.kernel_axes).get(len(layer_shape)) if name.endswith("/kernel") else None
        if axes is not None:
            layer_shape = tuple(layer_shape[axes.index(axis)] for axis in range(len(axes)))
        names = tuple(their_name.replace(LAYER, str(layer)) for layer in layers)
        return Spelling(names, layer_shape, axes, stacked)

    def ignores(self, their_name: str) -> bool:
        """Tells whether a tensor belongs to something else."""
        return self.ignored is not None and re.search(self.ignored, their_name) is not None

    def is_neutral(self, their_name: str) -> bool:
        """Tells whether a tensor is a scale that our network does not have."""
        return self.neutral is not None and re.search(self.neutral, their_name) is not None


@dataclass(frozen=True)
class Source:
    """One file of a checkpoint, and the tensors it holds.

    Attributes:
        file_names: its possible names; a `*` stands for anything. Two that are there at once are ambiguous.
        kind: "safetensors", "msgpack" or "torch".
        tables: the ways its tensors may be named; the one that fits best is taken.
        prefixes: the beginnings of our names of the tensors it holds.
    """

    file_names: tuple[str, ...]
    kind: str
    tables: tuple[NameTable, ...]
    prefixes: tuple[str, ...] = ("",)

    def find(self, place: Path) -> list[Path]:
        """Returns the files of a folder that have one of the names; or the file itself, if it has one."""
        files = place.iterdir() if place.is_dir() else [place]
        named = {path for path in files for name in self.file_names if fnmatchcase(path.name, name)}
        return sorted(path for path in named if path.is_file())


@dataclass(frozen=True)
class Layout:
    """The formats in which a network's weights come.

    Attributes:
        network: what the network is called, for messages.
        formats: the formats, in the order in which they are looked for; each is the files it consists of.
        optional: the beginnings of our names of tensors that may be absent, all of them together.
    """

    network: str
    formats: tuple[tuple[Source, ...], ...]
    optional: tuple[str, ...] = ()


# torch keeps the kernel of a product as (outputs, inputs), of a convolution as (outputs, inputs, height,
# width).
TORCH_KERNELS = ((2, (1, 0)), (4, (2, 3, 1, 0)))
TORCH_LEAVES = (("/(kernel|scale|embedding)$", ".weight"), ("/", "."))

OURS = Source(("model.safetensors",), "safetensors", (NameTable(),))

FLAX_SCANNED = NameTable()
FLAX_UNSCANNED = NameTable((("/FlaxBart(Encoder|Decoder)Layers/", r"/FlaxBart\1Layer_{layer}/"),))

MIN_DALLE_BART = NameTable(
    (
        ("^model/(encoder|decoder)/", ""),
        ("^layers/FlaxBart(Encoder|Decoder)Layers/", "layers/{layer}/"),
        ("/FlaxBartAttention_0/", "/self_attn/"),
        ("/FlaxBartAttention_1/", "/encoder_attn/"),
        ("/GLU_0/LayerNorm_", "/glu/ln"),
        ("/GLU_0/Dense_", "/glu/fc"),
        ("/LayerNorm_0/", "/pre_self_attn_layer_norm/"),
        ("/LayerNorm_1/", "/self_attn_layer_norm/"),
        ("/LayerNorm_2/", "/pre_encoder_attn_layer_norm/"),
        ("/LayerNorm_3/", "/encoder_attn_layer_norm/"),
        *TORCH_LEAVES,
    ),
    TORCH_KERNELS,
    # min-dalle's norms all have a scale, which stays one where the original has none.
    neutral=r"(^final_ln|\.pre_self_attn_layer_norm|\.pre_encoder_attn_layer_norm|\.glu\.ln[01])\.weight$",
)

TAMING_VQGAN = NameTable(
    (
        ("/(down|up)_([0-9]+)/(block|attn)_([0-9]+)/", r"/\1/\2/\3/\4/"),
        ("/(down|up)_([0-9]+)/", r"/\1/\2/"),
        *TORCH_LEAVES,
    ),
    TORCH_KERNELS,
    ignored=r"^loss\.",
)
MIN_DALLE_VQGAN = NameTable((("^quantize/", ""), *TAMING_VQGAN.substitutions), TORCH_KERNELS)

DALLEBART_LAYOUT = Layout(
    "DALL·E mini",
    (
        (OURS,),
        (Source(("flax_model.msgpack",), "msgpack", (FLAX_SCANNED, FLAX_UNSCANNED)),),
        (
            Source(("encoder.pt", "encoder_mini.pt"), "torch", (MIN_DALLE_BART,), ("model/encoder/",)),
            Source(
                ("decoder.pt", "decoder_mini.pt"), "torch", (MIN_DALLE_BART,), ("model/decoder/", "lm_head/")
            ),
        ),
    ),
)
"""The weights of `smalti.models.bart`."""

VQGAN_LAYOUT = Layout(
    "VQGAN",
    (
        (OURS,),
        (Source(("flax_model.msgpack",), "msgpack", (NameTable(),)),),
        (Source(("detoker.pt",), "torch", (MIN_DALLE_VQGAN,)),),
        (Source(("*.ckpt",), "torch", (TAMING_VQGAN,)),),
    ),
    # min-dalle keeps the half that makes pictures from codes.
    optional=("encoder/", "quant_conv/"),
)
"""The weights of `smalti.models.vqgan`."""
