"""CLIP: scores, files, and names of open_clip."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from smalti.errors import ModelError
from smalti.models.clip import CONFIG_FILE, WEIGHTS_FILE, Clip, write_folder
from smalti.models.open_clip_models import open_clip
from smalti.models.torchvision_operators import declare_missing_operators
from smalti.testing.clip import tiny_clip

PROMPT = "a red cat on the moon"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tiny CLIP that tests must not change."""
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip.load(folder, device="cpu")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny CLIP that tests may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copied"))


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (size, 32, 3), dtype=np.uint8) for size in (32, 20, 50)]
    return [*map(Image.fromarray, noise), *(Image.new("RGB", (32, 32), name) for name in ("red", "white"))]


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    change(config)
    (folder / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")


def logits_per_image(folder: Path, prompt: str, pictures: list[Image.Image]) -> list[float]:
    """Returns the scores that open_clip computes."""
    source = f"local-dir:{folder}"
    model, prepare = open_clip.create_model_from_pretrained(source)
    tokens = open_clip.get_tokenizer(source)([prompt])
    with torch.no_grad():
        logits, _ = model.eval().get_logits(torch.stack([prepare(picture) for picture in pictures]), tokens)
    return [float(logit) for logit in logits[:, 0]]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_scores_are_logits_per_image(
    folder: Path, clip: Clip, pictures: list[Image.Image], batch_size: int
) -> None:
    scores = clip.scores(PROMPT, pictures, batch_size=batch_size)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, logits_per_image(folder, PROMPT, pictures), atol=1e-5)
    assert np.ptp(scores) > 1  # Otherwise equal scores would pass.


def test_bias_is_part_of_the_logit(copied: Path, pictures: list[Image.Image]) -> None:
    config = json.loads((copied / CONFIG_FILE).read_text(encoding="utf-8"))
    config["model_cfg"]["init_logit_bias"] = -10.0
    write_folder(copied, open_clip.CLIP(**config["model_cfg"]), config)
    scores = Clip.load(copied, device="cpu").scores(PROMPT, pictures)
    np.testing.assert_allclose(scores, logits_per_image(copied, PROMPT, pictures), atol=1e-5)


def test_no_pictures_give_no_scores(clip: Clip) -> None:
    assert clip.scores(PROMPT, []).shape == (0,)


def test_long_prompt_is_cut(clip: Clip, pictures: list[Image.Image]) -> None:
    # 77 tokens, including the start and the end.
    fits = clip.scores("cat " * 75, pictures)
    assert clip.scores("cat " * 75 + "dog " * 100, pictures).tolist() == fits.tolist()
    assert clip.scores("cat " * 74 + "dog", pictures).tolist() != fits.tolist()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_any_mode_are_scored_as_rgb(clip: Clip, mode: str) -> None:
    picture = Image.new("RGB", (40, 60), "white").convert(mode)
    assert clip.scores(PROMPT, [picture]).tolist() == clip.scores(PROMPT, [picture.convert("RGB")]).tolist()


def test_model_is_in_evaluation_mode(clip: Clip) -> None:
    assert not any(module.training for module in clip.model.modules())
    assert {parameter.device.type for parameter in clip.model.parameters()} == {"cpu"}


def test_default_device_is_the_gpu_if_there_is_one(folder: Path) -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert Clip.load(folder).model.logit_scale.device.type == expected


def test_saved_model_gives_the_same_scores(clip: Clip, pictures: list[Image.Image], tmp_path: Path) -> None:
    clip.save(tmp_path / "made" / "clip")
    again = Clip.load(tmp_path / "made" / "clip", device="cpu")
    assert again.scores(PROMPT, pictures).tolist() == clip.scores(PROMPT, pictures).tolist()
    assert {path.name for path in (tmp_path / "made" / "clip").iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}


def test_failed_saving_keeps_the_old_files(copied: Path) -> None:
    before = {path.name: path.read_bytes() for path in copied.iterdir()}
    clip = Clip.load(copied, device="cpu")
    with torch.no_grad():
        clip.model.logit_scale.fill_(0)
    with pytest.raises(TypeError, match="JSON"):
        write_folder(copied, clip.model, {"model_cfg": object()})
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_tiny_clip_depends_only_on_its_seed(folder: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    tiny_clip(tmp_path / "same")
    tiny_clip(tmp_path / "other", seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in CONFIG_FILE, WEIGHTS_FILE:
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "other" / WEIGHTS_FILE).read_bytes() != (folder / WEIGHTS_FILE).read_bytes()


def register(monkeypatch: pytest.MonkeyPatch, folder: Path, **tag: object) -> None:
    """Adds the tiny CLIP to open_clip's lists as `Tiny-8:local`."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-8", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-8", {"local": tag})


def test_name_with_tag_uses_the_activation_of_its_weights(
    monkeypatch: pytest.MonkeyPatch, copied: Path, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    register(monkeypatch, copied, file=str(copied / WEIGHTS_FILE), quick_gelu=True, mean=(0.1, 0.2, 0.3))
    clip = Clip.load("Tiny-8:local", device="cpu")
    scores = clip.scores(PROMPT, pictures)
    clip.save(tmp_path / "saved")
    plain = logits_per_image(copied, PROMPT, pictures)
    change_config(copied, lambda config: config["model_cfg"].update(quick_gelu=True))
    change_config(copied, lambda config: config["preprocess_cfg"].update(mean=(0.1, 0.2, 0.3)))
    expected = logits_per_image(copied, PROMPT, pictures)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.abs(np.subtract(plain, expected)).max() > 1e-2  # Otherwise the activation would not matter.
    # The saved folder is as complete as the downloaded model.
    saved = Clip.load(tmp_path / "saved", device="cpu").scores(PROMPT, pictures)
    assert saved.tolist() == scores.tolist()


def test_failed_download_is_reported(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    register(monkeypatch, folder, url=(tmp_path / "none.pt").as_uri())
    with pytest.raises(ModelError, match=r"^CLIP Tiny-8:local: the weights cannot be downloaded .*network"):
        Clip.load("Tiny-8:local")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("VIT-B-23:openai", "unknown to open_clip; try ViT-B-32"),
        ("nothing like it:openai", "unknown to open_clip; try RN50"),
        ("ViT-B-32:opnai", "no weights with this tag; try openai"),
        ("ViT-B/32:opnai", "no weights with this tag; try openai"),
        ("ViT-B-32", "no weights with this tag; try openai"),
        ("no/such/folder", "no/such/folder: no such folder"),
        (Path("ViT-B-32:openai"), "no such folder"),
    ],
)
def test_unknown_names_are_reported_with_similar_ones(source: str | Path, problem: str) -> None:
    with pytest.raises(ModelError) as raised:
        Clip.load(source)
    assert problem in str(raised.value)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda folder: (folder / CONFIG_FILE).unlink(), f"has no {CONFIG_FILE}"),
        (lambda folder: cut_short(folder / CONFIG_FILE), "cannot be read as JSON"),
        (lambda folder: (folder / CONFIG_FILE).write_bytes(b"\xff"), "cannot be read as JSON"),
        (
            lambda folder: (folder / CONFIG_FILE).write_text("[]"),
            "has no model_cfg with text_cfg and vision_cfg",
        ),
        (
            lambda folder: change_config(folder, lambda config: config.clear()),
            "has no model_cfg with text_cfg",
        ),
        (
            lambda folder: change_config(folder, lambda config: config["model_cfg"].update(vision_cfg=[1])),
            "has no model_cfg with text_cfg and vision_cfg",
        ),
        (
            lambda folder: change_config(folder, lambda config: config["model_cfg"].update(embed_dim=17)),
            "cannot be loaded (Error(s) in loading state_dict",
        ),
        (
            lambda folder: change_config(folder, lambda config: config["model_cfg"].update(unknown=1)),
            "unexpected keyword argument 'unknown'",
        ),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), f"has no weights; add {WEIGHTS_FILE}"),
        # open_clip does not look at `.pt` and would score with random weights.
        (lambda folder: (folder / WEIGHTS_FILE).rename(folder / "weights.pt"), "has no weights"),
        (lambda folder: cut_short(folder / WEIGHTS_FILE), "cannot be loaded"),
        (lambda folder: (folder / WEIGHTS_FILE).write_bytes(b""), "cannot be loaded"),
    ],
)
def test_damaged_folder_is_reported_in_one_line(
    copied: Path, damage: Callable[[Path], object], problem: str
) -> None:
    damage(copied)
    with pytest.raises(ModelError) as raised:
        Clip.load(copied)
    assert problem in str(raised.value)
    assert str(copied) in str(raised.value)
    assert "\n" not in str(raised.value)


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.path,)


def test_weights_cannot_run_code(copied: Path, tmp_path: Path) -> None:
    (copied / WEIGHTS_FILE).unlink()
    torch.save({"weight": Intruder(tmp_path / "intruded")}, copied / "open_clip_pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Clip.load(copied)
    assert not (tmp_path / "intruded").exists()
    pickle.loads(pickle.dumps(Intruder(tmp_path / "intruded")))
    assert (tmp_path / "intruded").exists()  # Without the check, torch runs the code.


class AutoTokenizer:
    """Replaces the class of `transformers`, which runs the code of a folder that it is asked to trust."""

    @staticmethod
    def from_pretrained(place: Path, **options: object) -> None:
        raise OSError(f"trusted: {options.get('trust_remote_code')}")


def test_tokenizer_cannot_run_code(monkeypatch: pytest.MonkeyPatch, copied: Path) -> None:
    transformers: Any = ModuleType("transformers")
    transformers.AutoTokenizer = AutoTokenizer
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    trusting = {"hf_tokenizer_name": "anything", "tokenizer_kwargs": {"trust_remote_code": True}}
    change_config(copied, lambda config: config["model_cfg"]["text_cfg"].update(trusting))
    with pytest.raises(ModelError, match="trusted: False"):
        Clip.load(copied)


def test_operators_are_declared_once() -> None:
    import torchvision

    assert torchvision.transforms
    assert torch.ops.torchvision.nms
    assert declare_missing_operators() is False


@pytest.mark.process
def test_existing_operators_are_not_replaced() -> None:
    # In a separate process, in which the library of torchvision has registered one.
    program = """
import torch
from smalti.models.torchvision_operators import declare_missing_operators
torch.library.define("torchvision::nms", "(Tensor x) -> Tensor")
assert declare_missing_operators() is False
assert not hasattr(torch.ops.torchvision, "qnms")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
