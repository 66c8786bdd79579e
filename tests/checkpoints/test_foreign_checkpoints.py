"""Weights in torch files, of min-dalle and of taming-transformers, and files that try to run code.

`golden/min_dalle_bart` and `golden/min_dalle_vqgan` were made with small modules of min-dalle 0.4.11 and random
weights: `encoder.pt`, `decoder.pt` and `detoker.pt` in float16, like the published files, and `expected.npz` with the
outputs of these modules in float32, the decoder step by step with its cache.
"""

import os
import re
import sys
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flax import serialization, traverse_util

from smalti.checkpoints.loading import DALLEBART_LAYOUT, VQGAN_LAYOUT, load_parameters
from smalti.errors import CheckpointError, ModelError
from smalti.models import bart, vqgan
from smalti.models.bart import DalleBart
from smalti.models.layers import flatten
from smalti.models.vqgan import VQGAN

BART, DETOKER, CKPT = "min_dalle_bart", "min_dalle_vqgan", "last.ckpt"
State = dict[str, torch.Tensor]


@pytest.fixture
def bart_folder(golden: Path, tmp_path: Path) -> Path:
    """A copy of min-dalle's transformer that tests may change."""
    for file in (golden / BART).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def vqgan_tensors(golden: Path) -> dict[str, np.ndarray]:
    tree = serialization.msgpack_restore((golden / "vqgan_tiny" / "flax_model.msgpack").read_bytes())
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.fixture(scope="module")
def taming(vqgan_tensors: Mapping[str, np.ndarray]) -> State:
    """The same weights with the names and the order of axes of taming-transformers."""
    state: State = {}
    for name, tensor in vqgan_tensors.items():
        path, _, leaf = name.rpartition("/")
        path = path if "mid" in path else re.sub(r"(up|down|block|attn)_(\d)", r"\1.\2", path)
        if leaf == "kernel":
            tensor = tensor.transpose(3, 2, 0, 1)
        name = f"{path}/{'bias' if leaf == 'bias' else 'weight'}".replace("/", ".")
        state[name] = torch.from_numpy(tensor.copy())
    return state


@pytest.fixture
def lightning() -> Iterator[types.ModuleType]:
    """A module that exists only while a checkpoint is written, like PyTorch Lightning."""
    module = types.ModuleType("pytorch_lightning_callbacks")
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def load_vqgan(folder: Path, golden: Path) -> dict[str, np.ndarray]:
    expected = vqgan.parameter_shapes(vqgan.VQGANConfig.load(golden / "vqgan_tiny"))
    return load_parameters(folder, expected, VQGAN_LAYOUT)


def refusal(action: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# min-dalle.


def test_transformer_agrees_with_min_dalle(golden: Path) -> None:
    model, expected = DalleBart.load(golden / BART), np.load(golden / BART / "expected.npz")
    mask = expected["attention_mask"]
    encoding = model.encode(expected["input_ids"], mask)
    np.testing.assert_allclose(encoding, expected["encoder_hidden"], atol=1e-4)
    logits = model.logits(expected["encoder_hidden"], mask, expected["decoder_input_ids"])
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)


def test_detokenizer_agrees_with_min_dalle(golden: Path) -> None:
    model, expected = VQGAN.load(golden / DETOKER), np.load(golden / DETOKER / "expected.npz")
    # min-dalle's group norms have an epsilon of 1e-5 instead of the original's 1e-6.
    np.testing.assert_allclose(model.decode(expected["codes"]), expected["decoded"], atol=3e-4)


def test_detokenizer_has_no_encoder(golden: Path, tmp_path: Path) -> None:
    model = VQGAN.load(golden / DETOKER)
    assert not model.has_encoder
    assert "quant_conv" not in model.params
    with pytest.raises(ModelError, match="no encoder"):
        model.encode(np.zeros((1, 32, 32, 3), np.float32))
    # A file that we save does not have one either.
    model.save(tmp_path)
    assert not VQGAN.load(tmp_path).has_encoder


def test_half_an_encoder_is_refused(golden: Path, tmp_path: Path) -> None:
    state = torch.load(golden / DETOKER / "detoker.pt")
    torch.save(state | {"encoder.conv_in.bias": torch.zeros(32)}, tmp_path / "detoker.pt")
    message = refusal(lambda: load_vqgan(tmp_path, golden))
    assert "tensor encoder." in message
    assert "is missing" in message


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_half_of_the_model_needs_only_its_file(bart_folder: Path, part: str) -> None:
    (bart_folder / f"{'decoder' if part == 'encoder' else 'encoder'}.pt").unlink()
    assert list(DalleBart.load(bart_folder, part=part).params["model"]) == [part]


def test_file_names_of_the_smaller_model_are_read(bart_folder: Path, golden: Path) -> None:
    wanted = DalleBart.load(golden / BART)
    for part in ("encoder", "decoder"):
        (bart_folder / f"{part}.pt").rename(bart_folder / f"{part}_mini.pt")
    found = DalleBart.load(bart_folder)
    np.testing.assert_array_equal(found.params["lm_head"]["kernel"], wanted.params["lm_head"]["kernel"])


def test_neutral_scales_are_accepted(bart_folder: Path, golden: Path) -> None:
    """Every norm of min-dalle's modules has a scale, which their state dict contains."""
    for name in ("encoder.pt", "decoder.pt"):
        state = torch.load(bart_folder / name)
        biases = {key.removesuffix("bias"): bias for key, bias in state.items() if key.endswith("bias")}
        ones = {f"{norm}weight": torch.ones_like(bias) for norm, bias in biases.items()}
        assert len(ones.keys() - state.keys()) == {"encoder.pt": 3 * 3 + 1, "decoder.pt": 2 * 4 + 1}[name]
        torch.save(ones | state, bart_folder / name)
    found, wanted = DalleBart.load(bart_folder).params, DalleBart.load(golden / BART).params
    assert flatten(found).keys() == flatten(wanted).keys()


@pytest.mark.parametrize("name", ["final_ln", "layers.2.glu.ln1", "layers.0.pre_self_attn_layer_norm"])
def test_other_scales_than_one_are_refused(bart_folder: Path, name: str) -> None:
    path = bart_folder / "encoder.pt"
    state = torch.load(path)
    scale = torch.ones_like(state[f"{name}.bias"])
    torch.save(state | {f"{name}.weight": scale}, path)
    DalleBart.load(bart_folder)
    scale[3] = 0.5
    torch.save(state | {f"{name}.weight": scale}, path)
    message = refusal(lambda: DalleBart.load(bart_folder))
    assert f"tensor {name}.weight must contain only ones" in message


def test_views_and_shared_storages_are_read(bart_folder: Path, golden: Path) -> None:
    """torch saves a transposed tensor or a slice as a view of its original storage."""
    path = bart_folder / "decoder.pt"
    state = torch.load(path)
    state["lm_head.weight"] = state["lm_head.weight"].T.contiguous().T
    name = "layers.1.glu.fc0.weight"
    margin = torch.zeros(2, 48, dtype=torch.float16)
    state[name] = torch.cat([margin, state[name], margin])[2:-2]
    both = torch.stack([state["embed_positions.weight"], state["embed_positions.weight"] * 2], dim=-1)
    state["embed_positions.weight"] = both[..., 0]
    assert not state["lm_head.weight"].is_contiguous()
    assert not state["embed_positions.weight"].is_contiguous()
    torch.save(state, path)
    expected = bart.parameter_shapes(bart.DalleBartConfig.load(golden / BART))
    found = load_parameters(bart_folder, expected, DALLEBART_LAYOUT)
    for name, tensor in load_parameters(golden / BART, expected, DALLEBART_LAYOUT).items():
        np.testing.assert_array_equal(found[name], tensor)


def test_mismatches_are_reported_with_the_names_of_the_file(bart_folder: Path) -> None:
    path = bart_folder / "encoder.pt"
    state = torch.load(path)
    name = "layers.1.glu.fc2.weight"
    torch.save(state | {name: state[name].T.contiguous()}, path)
    message = refusal(lambda: DalleBart.load(bart_folder))
    assert f"encoder.pt: tensor {name} has shape (40, 48), but config.json requires (48, 40)" in message
    torch.save(state | {name: state[name].double()}, path)
    assert f"tensor {name} has type float64" in refusal(lambda: DalleBart.load(bart_folder))
    torch.save(state | {"layers.3.glu.fc2.weight": state[name]}, path)
    assert "tensor layers.3.glu.fc2.weight of shape (48, 40) is unexpected" in refusal(
        lambda: DalleBart.load(bart_folder)
    )
    torch.save({key: tensor for key, tensor in state.items() if key != name}, path)
    assert f"tensor {name} of shape (48, 40) is missing" in refusal(lambda: DalleBart.load(bart_folder))


# taming-transformers.


def assert_vqgan(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor)


def test_state_dict_of_taming_is_read(
    tmp_path: Path, golden: Path, taming: State, vqgan_tensors: Mapping[str, np.ndarray]
) -> None:
    assert "decoder.up.1.attn.0.proj_out.weight" in taming
    assert "encoder.mid.block_1.conv1.weight" in taming
    assert "quantize.embedding.weight" in taming
    torch.save(taming, tmp_path / "vqgan_f16.ckpt")
    assert_vqgan(load_vqgan(tmp_path, golden), vqgan_tensors)


def test_lightning_checkpoint_of_taming_is_read(
    tmp_path: Path,
    golden: Path,
    taming: State,
    vqgan_tensors: Mapping[str, np.ndarray],
    lightning: types.ModuleType,
) -> None:
    """The checkpoint has losses, optimizers, and classes of the training code, which does not exist here."""

    class ModelCheckpoint:
        """A class that is a key of the callbacks."""

    class AttributeDict(dict[str, Any]):
        """The class of Lightning for hyper-parameters."""

    for kind in (ModelCheckpoint, AttributeDict):
        kind.__module__, kind.__qualname__ = lightning.__name__, kind.__name__
        setattr(lightning, kind.__name__, kind)
    callback = ModelCheckpoint()
    callback.__dict__["best_model_score"] = torch.tensor(0.5)
    losses = {"loss.discriminator.main.0.weight": torch.ones(3), "loss.logvar": torch.zeros(())}
    content = {
        "epoch": 12,
        "state_dict": taming | losses | {"loss.discriminator.batches": torch.tensor(7)},
        "callbacks": {ModelCheckpoint: {"best_model_path": "there", "self": callback}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
        "hyper_parameters": AttributeDict(learning_rate=4.5e-06),
    }
    torch.save(content, tmp_path / CKPT)
    del sys.modules[lightning.__name__]
    assert_vqgan(load_vqgan(tmp_path, golden), vqgan_tensors)
    assert_vqgan(load_vqgan(tmp_path / CKPT, golden), vqgan_tensors)


def test_two_checkpoints_are_refused(tmp_path: Path, golden: Path) -> None:
    for name in ("last.ckpt", "epoch=3.ckpt"):
        (tmp_path / name).touch()
    assert "has both epoch=3.ckpt and last.ckpt" in refusal(lambda: load_vqgan(tmp_path, golden))


# Files that try to run code.


def touch(path: str) -> None:
    """A function that the files of the tests below try to call."""
    Path(path).touch()


class Calling:
    """An object whose pickle is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    """A file that exists only if code has run."""
    return tmp_path / "code has run"


@pytest.mark.parametrize("inside", [False, True])
def test_calls_of_a_file_are_not_made(
    tmp_path: Path, golden: Path, taming: State, witness: Path, inside: bool
) -> None:
    calls = {
        "exec": Calling(exec, f"open({str(witness)!r}, 'w')"),
        "eval": Calling(eval, f"open({str(witness)!r}, 'w')"),
        "function": Calling(touch, str(witness)),
        "getattr": Calling(getattr, Path(witness), "touch"),
    }
    for name, call in calls.items():
        state: dict[str, Any] = taming | {name: call} if inside else {"state_dict": taming, name: call}
        torch.save(state, tmp_path / CKPT)
        if inside:
            assert f"'{name}' is not a dense tensor" in refusal(lambda: load_vqgan(tmp_path, golden))
        else:
            load_vqgan(tmp_path, golden)
        assert not witness.exists()
    # Without the check, torch does run the code.
    torch.load(tmp_path / CKPT, weights_only=False)
    torch.save(calls["function"], tmp_path / CKPT)
    torch.load(tmp_path / CKPT, weights_only=False)
    assert witness.exists()


def test_calls_of_the_system_are_refused(tmp_path: Path, golden: Path, taming: State, witness: Path) -> None:
    torch.save({"state_dict": taming, "call": Calling(os.system, f"touch '{witness}'")}, tmp_path / CKPT)
    message = refusal(lambda: load_vqgan(tmp_path, golden))
    assert "last.ckpt: damaged, or it would run code (" in message
    assert "posix.system" in message
    assert not witness.exists()


# Damage.


def test_truncated_file_is_refused(bart_folder: Path) -> None:
    path = bart_folder / "decoder.pt"
    content = path.read_bytes()
    for end in (0, 3, 30, 1000, len(content) // 2, len(content) - 1000, len(content) - 1):
        path.write_bytes(content[:end])
        message = refusal(lambda: DalleBart.load(bart_folder))
        assert "decoder.pt: truncated" in message if end > 3 else "not written by torch.save" in message


def test_damage_is_refused_in_one_line_or_changes_only_numbers(bart_folder: Path) -> None:
    path = bart_folder / "decoder.pt"
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo("decoder/data.pkl").header_offset
    expected = bart.parameter_shapes(bart.DalleBartConfig.load(bart_folder))
    refused = 0
    offsets = [*range(begin, begin + 3000, 41), *range(len(content) - 3000, len(content), 41)]
    for offset in offsets:
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 0x5A]) + content[offset + 1 :])
        try:
            load_parameters(bart_folder, expected, DALLEBART_LAYOUT)
        except CheckpointError as error:
            refused += "\n" not in str(error)
    assert refused > len(offsets) // 2


def test_formats_that_cannot_be_read_by_offset_are_refused(bart_folder: Path) -> None:
    path = bart_folder / "encoder.pt"
    state = torch.load(path)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert "torch 1.6 or newer" in refusal(lambda: DalleBart.load(bart_folder))
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
    assert "compressed" in refusal(lambda: DalleBart.load(bart_folder))
    with zipfile.ZipFile(path, "w") as archive:
        for name, entry in entries.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else entry)
    assert "not little-endian" in refusal(lambda: DalleBart.load(bart_folder))


@pytest.mark.parametrize("content", [[torch.ones(3)], torch.ones(3), {"state_dict": [1]}, {"epoch": 3}])
def test_other_content_than_a_state_dict_is_refused(tmp_path: Path, golden: Path, content: object) -> None:
    torch.save(content, tmp_path / CKPT)
    assert "a state dict" in refusal(lambda: load_vqgan(tmp_path, golden))


def test_without_torch_the_extra_is_named(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "torch is needed to read this file; pip install 'smalti[ranker]'" in refusal(
        lambda: DalleBart.load(golden / BART)
    )
