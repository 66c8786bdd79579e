"""Measures how much memory loading a checkpoint takes, as a multiple of the size of its files.

Writes weights with the shapes of DALL·E mini in each format into a temporary folder. For each format and each of three
actions, a separate process prints its peak memory (VmHWM, which includes the pages of mapped files) minus its memory
before the action: "load" reads all tensors into the host's memory, "convert" writes them as `model.safetensors`, and
"model" loads them onto JAX's device, which on a CPU is the same memory. With the default of 15 layers (DALL·E mini has
12), the file has 2 GB.

    python benchmarks/loading_memory.py
    python benchmarks/loading_memory.py --d-model 256 --layers 6 --json
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from smalti.checkpoints.loading import DALLEBART_LAYOUT, load_parameters, open_checkpoint
from smalti.checkpoints.names import FLAX_SCANNED, FLAX_UNSCANNED, MIN_DALLE_BART, NameTable, Shape
from smalti.checkpoints.safetensors import write_safetensors

ACTIONS = ("load", "convert", "model")


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d-model", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--formats", nargs="*", choices=list(WRITERS), default=list(WRITERS))
    parser.add_argument("--actions", nargs="*", choices=ACTIONS, default=ACTIONS)
    parser.add_argument("--folder", type=Path, help="folder for the temporary files")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object for each line of the table"
    )
    parser.add_argument("--measure", nargs=2, metavar=("ACTION", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for form in options.formats:
            folder = Path(temporary) / form
            folder.mkdir()
            shapes = parameter_shapes(options.d_model, options.layers)
            (folder / "shapes.json").write_text(json.dumps(shapes))
            (folder / "config.json").write_text(json.dumps(sizes(options.d_model, options.layers)))
            WRITERS[form](folder, shapes)
            for action in options.actions:
                report(form, run_apart(action, folder), as_json=options.json)
            for path in folder.iterdir():
                path.unlink()


def sizes(d_model: int, layers: int) -> dict[str, int]:
    """Returns DALL·E mini's configuration with another width and number of layers."""
    width = d_model * 8 // 3
    layer_sizes = {"encoder_layers": layers, "decoder_layers": layers}
    return {"d_model": d_model, "encoder_ffn_dim": width, "decoder_ffn_dim": width} | layer_sizes


def parameter_shapes(d_model: int, layers: int) -> dict[str, Shape]:
    """Returns the shapes of the parameters."""
    from smalti.models.bart import DalleBartConfig
    from smalti.models.bart import parameter_shapes as bart_shapes

    return bart_shapes(DalleBartConfig.from_fields(sizes(d_model, layers)))


def run_apart(action: str, folder: Path) -> dict[str, Any]:
    """Measures in a new process, so that its peak is that of the action."""
    command = [sys.executable, __file__, "--measure", action, str(folder)]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def measure(action: str, folder: Path) -> dict[str, Any]:
    """Runs an action on the weights of a folder; returns its memory and time."""
    shapes = {name: tuple(shape) for name, shape in json.loads((folder / "shapes.json").read_text()).items()}
    weights = [path for path in folder.iterdir() if path.suffix != ".json"]
    # The memory of the libraries does not count.
    if any(path.suffix == ".pt" for path in weights):
        import torch  # noqa: F401
    if action == "model":
        import jax

        from smalti.models.bart import DalleBart

        jax.device_put(0)
    baseline, begin = memory("VmRSS"), time.perf_counter()
    held: object = None
    if action == "load":
        held = load_parameters(folder, shapes, DALLEBART_LAYOUT)
    elif action == "model":
        held = DalleBart.load(folder)
    else:
        with tempfile.TemporaryDirectory(dir=folder) as target:
            open_checkpoint(folder, shapes, DALLEBART_LAYOUT).save(Path(target))
    seconds, peak = time.perf_counter() - begin, memory("VmHWM") - baseline
    del held
    size = sum(path.stat().st_size for path in weights)
    return {"action": action, "file_bytes": size, "peak_bytes": peak, "seconds": round(seconds, 2)}


def memory(field: str) -> int:
    """Returns a field of this process's memory status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def report(form: str, result: dict[str, Any], *, as_json: bool) -> None:
    """Prints one line."""
    result |= {"format": form, "ratio": round(result["peak_bytes"] / result["file_bytes"], 3)}
    if as_json:
        print(json.dumps(result))
    else:
        size, peak = result["file_bytes"] / 1e6, result["peak_bytes"] / 1e6
        print(
            f"{form:18} {result['action']:8} file {size:7.1f} MB   peak {peak:7.1f} MB   "
            f"ratio {result['ratio']:.3f}   {result['seconds']:.1f} s"
        )


def draw(shape: Shape, dtype: type = np.float32) -> np.ndarray:
    """Returns random numbers, since a file of zeros could be sparse."""
    return np.random.default_rng(0).random(shape, np.float32).astype(dtype, copy=False)


def write_own(folder: Path, shapes: Mapping[str, Shape]) -> None:
    """Writes `model.safetensors`."""
    sizes = {name: (np.dtype(np.float32), shape) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", sizes, lambda name: draw(shapes[name]))


def write_msgpack(folder: Path, shapes: Mapping[str, Shape], table: NameTable) -> None:
    """Writes `flax_model.msgpack` as Flax does, but one tensor at a time."""
    tree: dict[str, Any] = {}
    for name, shape in their_shapes(shapes, table).items():
        node = tree
        *parents, leaf = name.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = shape
    with (folder / "flax_model.msgpack").open("wb") as file:
        write_map(file, tree)


def write_map(file: BinaryIO, tree: Mapping[str, Any]) -> None:
    """Writes one level of the tree."""
    import msgpack

    packer = msgpack.Packer()
    file.write(packer.pack_map_header(len(tree)))
    for key, child in tree.items():
        file.write(msgpack.packb(key))
        if isinstance(child, dict):
            write_map(file, child)
        else:
            tensor = msgpack.packb((child, "float32", draw(child).tobytes()))
            file.write(msgpack.packb(msgpack.ExtType(1, tensor)))


def write_torch(folder: Path, shapes: Mapping[str, Shape]) -> None:
    """Writes `encoder.pt` and `decoder.pt` in float16, as in min-dalle."""
    import torch

    for stem, prefixes in (("encoder", ("model/encoder/",)), ("decoder", ("model/decoder/", "lm_head/"))):
        part = {name: shape for name, shape in shapes.items() if name.startswith(prefixes)}
        tensors = {
            name: torch.from_numpy(draw(shape, np.float16))
            for name, shape in their_shapes(part, MIN_DALLE_BART).items()
        }
        torch.save(tensors, folder / f"{stem}.pt")


def their_shapes(shapes: Mapping[str, Shape], table: NameTable) -> dict[str, Shape]:
    """Returns the names and shapes in a format that may have separate layers and transposed kernels."""
    return {name: spelling.shape for spelling in table.spell(shapes).values() for name in spelling.names}


WRITERS: dict[str, Callable[[Path, Mapping[str, Shape]], None]] = {
    "safetensors": write_own,
    "msgpack": lambda folder, shapes: write_msgpack(folder, shapes, FLAX_SCANNED),
    "msgpack-by-layer": lambda folder, shapes: write_msgpack(folder, shapes, FLAX_UNSCANNED),
    "torch": write_torch,
}


if __name__ == "__main__":
    main()
