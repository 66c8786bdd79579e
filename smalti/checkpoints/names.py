"""Names of tensors in each supported format.

Our names are those of the original Flax checkpoints, joined with "/", with layers stacked on axis 0. A table is a list
of substitutions that turn our name into the name in another format; the result contains `{layer}` if that format stores
each layer separately.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

Shape = tuple[int, ...]
Axes = tuple[int, ...]

LAYER = "{layer}"
"""Placeholder for the index of a layer in names of formats that store layers separately."""


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """The representation of one of our tensors in a format."""

    names: tuple[str, ...]
    """Name of the tensor in the format, or the names of its layers in order."""
    shape: Shape
    """Shape of the tensor, or of each layer, in the format."""
    axes: Axes | None
    """For each axis of our tensor (or layer) the axis in the format; None if the order is the same."""
    stacked: bool
    """Whether the names are those of layers, which we stack on axis 0."""


@dataclass(frozen=True)
class NameTable:
    """The names of the tensors in one format."""

    substitutions: tuple[tuple[str, str], ...] = ()
    """Pairs of regular expression and replacement, applied to our name in order."""
    kernel_axes: tuple[tuple[int, Axes], ...] = ()
    """For kernels with this number of axes, the axis in the format for each of our axes."""
    ignored: str | None = None
    """Pattern for names of tensors that are not part of the network, such as training losses."""
    neutral: str | None = None
    """Pattern for names of scales that our network does not have; all their numbers must be one."""

    def spell(self, expected: Mapping[str, Shape]) -> dict[str, Spelling]:
        """Returns how the format stores our tensors, given by names and shapes."""
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
        return Spelling(names=names, shape=layer_shape, axes=axes, stacked=stacked)

    def ignores(self, their_name: str) -> bool:
        """Returns whether a tensor is not part of the network."""
        return self.ignored is not None and re.search(self.ignored, their_name) is not None

    def is_neutral(self, their_name: str) -> bool:
        """Returns whether a tensor is a scale that our network does not have."""
        return self.neutral is not None and re.search(self.neutral, their_name) is not None


@dataclass(frozen=True)
class Source:
    """One file of a checkpoint, and the tensors that it contains."""

    file_names: tuple[str, ...]
    """Possible file names, as patterns with `*`; several files that match are ambiguous."""
    kind: str
    """ "safetensors", "msgpack" or "torch"."""
    tables: tuple[NameTable, ...]
    """Possible naming schemes; the one that fits best is used."""
    prefixes: tuple[str, ...] = ("",)
    """Prefixes of our names of the tensors in this file."""

    def find(self, path: Path) -> list[Path]:
        """Returns the files with a matching name: those in a folder, or the given file itself."""
        files = path.iterdir() if path.is_dir() else [path]
        named = {file for file in files for name in self.file_names if fnmatchcase(file.name, name)}
        return sorted(file for file in named if file.is_file())


@dataclass(frozen=True)
class Layout:
    """The supported file formats of a network's weights."""

    network: str
    """Name of the network, for messages."""
    formats: tuple[tuple[Source, ...], ...]
    """The files of each format, in order of preference."""
    optional: tuple[str, ...] = ()
    """Prefixes of our names of tensors that may be absent, but only all together."""


# Kernels in torch are (outputs, inputs) for products, and (outputs, inputs, height, width) for convolutions.
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
    # All norms of min-dalle have a scale; it is one where the original has none.
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
"""Formats of the weights of `smalti.models.bart`."""

VQGAN_LAYOUT = Layout(
    "VQGAN",
    (
        (OURS,),
        (Source(("flax_model.msgpack",), "msgpack", (NameTable(),)),),
        (Source(("detoker.pt",), "torch", (MIN_DALLE_VQGAN,)),),
        (Source(("*.ckpt",), "torch", (TAMING_VQGAN,)),),
    ),
    # min-dalle's files contain only the decoder.
    optional=("encoder/", "quant_conv/"),
)
"""Formats of the weights of `smalti.models.vqgan`."""

REFINER_LAYOUT = Layout("refiner", ((OURS,),))
"""Formats of the weights of `smalti.models.refiner`."""
