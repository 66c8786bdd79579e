"""Model folders: the fields of `model.json`, and the problems that `verify` finds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smalti.checkpoints.loading import save_parameters
from smalti.errors import InvalidInputError, ModelError
from smalti.models.bart import DalleBart
from smalti.models.layers import flatten
from smalti.parameters import Defaults, SamplingParameters
from smalti.registry.folder import ModelFolder
from smalti.registry.manifest import MANIFEST_FILE, check_name
from smalti.registry.verify import find_problems

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(tiny: ModelFolder, tmp_path: Path) -> Path:
    """A copy of the tiny model that tests may change."""
    return Path(shutil.copytree(tiny.path, tmp_path / "copy"))


def create(path: Path, **changes: Any) -> ModelFolder:
    return ModelFolder.create(path, **{"name": "copy", "licence": "MIT", **changes})


def change(path: Path, edit: Change) -> None:
    """Edits `model.json`."""
    file = path / MANIFEST_FILE
    fields = json.loads(file.read_text())
    edit(fields)
    file.write_text(json.dumps(fields))


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        ModelFolder.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_created_folder_keeps_its_arguments(copy: Path) -> None:
    sampling, defaults = SamplingParameters(guidance_scale=3.5, top_k=0), Defaults(n=4, candidates=8)
    made = create(copy, description="Ünlaid.", source="here", sampling=sampling, defaults=defaults)
    found = ModelFolder.open(copy)
    assert found == made
    assert (found.name, found.manifest.licence, found.manifest.description) == ("copy", "MIT", "Ünlaid.")
    assert (found.sampling, found.defaults) == (sampling, defaults)
    assert (found.bart_folder, found.vqgan_folder) == (copy / "bart", copy / "vqgan")
    assert found.text_folder == copy / "bart"
    assert found.clip_source == copy / "clip"
    files = {path for path in copy.rglob("*") if path.is_file() and path.name != MANIFEST_FILE}
    assert {copy / file for file in found.manifest.files} == files
    assert found.size == sum(path.stat().st_size for path in files)
    assert find_problems(found) == []


def test_text_tokenizer_may_be_in_a_separate_folder(copy: Path) -> None:
    (copy / "text").mkdir()
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (copy / "bart" / name).rename(copy / "text" / name)
    assert create(copy).text_folder == copy / "text"
    assert find_problems(ModelFolder.open(copy)) == []


def test_clip_may_be_a_name(copy: Path) -> None:
    shutil.rmtree(copy / "clip")
    create(copy, clip="ViT-B-32:openai")
    found = ModelFolder.open(copy)
    assert json.loads((copy / MANIFEST_FILE).read_text())["parts"]["clip"] == {
        "name": "ViT-B-32",
        "pretrained": "openai",
    }
    assert found.clip_source == "ViT-B-32:openai"
    assert find_problems(found) == []
    with pytest.raises(InvalidInputError, match="clip: 'ViT-B-32' is neither a folder nor NAME:TAG"):
        create(copy, clip="ViT-B-32")


def test_revision_depends_only_on_the_content(copy: Path, tmp_path: Path) -> None:
    first = create(copy).revision
    assert (
        create(copy, name="other", licence="CC0-1.0", sampling=SamplingParameters(top_k=9)).revision == first
    )
    elsewhere = Path(shutil.copytree(copy, tmp_path / "elsewhere"))
    (elsewhere / ".cache").mkdir()
    (elsewhere / ".cache" / "of a tool").touch()
    assert create(elsewhere).revision == first
    (copy / "bart" / "merges.txt").rename(copy / "bart" / "renamed.txt")
    renamed = create(copy).revision
    (copy / "bart" / "renamed.txt").write_text("other words")
    changed = create(copy).revision
    shutil.rmtree(copy / "clip")
    named = [create(copy, clip=clip).revision for clip in ("ViT-B-32:openai", "ViT-B-32:laion2b_s34b_b79k")]
    assert len({first, renamed, changed, *named}) == 5


def test_folder_without_a_model_is_refused(copy: Path) -> None:
    assert "no such folder" in refusal(copy / "nowhere")
    assert "not a folder" in refusal(copy / MANIFEST_FILE)
    assert "bart: not a model folder: it has no model.json; make one with `smalti import`" in refusal(
        copy / "bart"
    )
    (copy / MANIFEST_FILE).write_text('{"format": 1,')
    assert "model.json: cannot be read as JSON" in refusal(copy)
    (copy / MANIFEST_FILE).write_bytes(b"\xff\xfe")
    assert "model.json: cannot be read as JSON" in refusal(copy)
    (copy / MANIFEST_FILE).write_text("[]")
    assert "model.json: must hold a JSON object, not list" in refusal(copy)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda m: m.update(format=2), "format 2 is unknown, this version of Smalti reads 1; update Smalti"),
        (lambda m: m.pop("format"), "format: field required"),
        (lambda m: m.pop("revision"), "revision: field required"),
        (lambda m: m.update(name="../x"), 'name: string should match pattern'),
        (lambda m: m.update(name=3), "name: input should be a valid string, not 3"),
        (lambda m: m.update(colour="red"), "colour: there is no such key"),
        (lambda m: m.update(licence=""), "licence: string should have at least 1 character"),
        (lambda m: m["sampling"].update(top_p=0), "sampling.top_p: input should be greater than 0, not 0"),
        (lambda m: m["defaults"].update(n="nine"), 'defaults.n: input should be a valid integer, '),
        (lambda m: m["parts"].update(bart="../bart"), "parts.bart: must be a path inside the model folder"),
        (lambda m: m["parts"].update(vqgan="/etc"), "parts.vqgan: must be a path inside the model folder"),
        (lambda m: m["parts"]["clip"].update(folder="a/../../b"), "parts.clip.ClipFolder.folder: must be a path"),
        (lambda m: m["files"].update({"../x": {"size": 1, "sha256": "0" * 64}}), "must be a path inside the model"),
        (lambda m: m["files"]["bart/config.json"].update(sha256="0"), "files.bart/config.json.sha256: "),
        (lambda m: m["parts"].update(vqgan="gone"), "part vqgan is missing: no folder "),
        (lambda m: m["parts"]["clip"].update(folder="gone"), "part clip is missing: no folder "),
    ],
)  # fmt: skip
def test_invalid_fields_are_refused(copy: Path, edit: Change, problem: str) -> None:
    change(copy, edit)
    message = refusal(copy)
    assert str(copy) in message
    assert problem in message


def test_part_that_links_outside_the_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "vqgan").rename(tmp_path / "elsewhere")
    (copy / "vqgan").symlink_to(tmp_path / "elsewhere")
    assert "part vqgan is outside the model folder" in refusal(copy)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "ä", "x" * 101, "a\n"])
def test_invalid_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match=r"^name: "):
        check_name(name)


def test_folder_without_a_part_cannot_be_created(copy: Path) -> None:
    before = (copy / MANIFEST_FILE).read_bytes()
    shutil.rmtree(copy / "vqgan")
    with pytest.raises(ModelError, match="part vqgan is missing"):
        create(copy)
    assert (copy / MANIFEST_FILE).read_bytes() == before


# Problems that `verify` finds.


def problems(path: Path) -> list[str]:
    found = find_problems(ModelFolder.open(path))
    assert not any("\n" in problem for problem in found)
    return found


def test_missing_changed_and_extra_files_are_found(copy: Path) -> None:
    create(copy)
    (copy / "bart" / "merges.txt").unlink()
    vocabulary = copy / "bart" / "vocab.json"
    vocabulary.write_text(vocabulary.read_text().replace(":", ": "))
    config = copy / "clip" / "open_clip_config.json"
    config.write_bytes(config.read_bytes().replace(b"32", b"33", 1))
    (copy / "notes.txt").touch()
    (copy / ".hidden").touch()
    found = problems(copy)
    assert len(found) == 4
    assert found[0] == f"{copy / 'bart' / 'merges.txt'}: missing"
    assert found[1] == f"{copy / 'notes.txt'}: not listed in model.json"
    assert found[2].startswith(f"{vocabulary}: changed: ")
    assert found[3].startswith(f"{config}: changed: SHA-256 is ")


def test_wrong_revision_is_found(copy: Path) -> None:
    change(copy, lambda fields: fields.update(revision="sha256:" + "0" * 64))
    assert problems(copy) == [f"{copy / MANIFEST_FILE}: revision: does not match the listed files"]


def edit_config(path: Path, **changes: Any) -> None:
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | changes))


@pytest.mark.parametrize(
    ("part", "changes", "found"),
    [
        ("bart", {"encoder_ffn_dim": 47}, "but config.json requires"),
        ("bart", {"use_bias": True}, "bart/config.json: use_bias: true is not implemented"),
        ("vqgan", {"n_embed": 65}, "but config.json requires (65, 8)"),
        (
            "vqgan",
            {"resolution": 64, "attn_resolutions": [8]},
            "the VQGAN decodes 64; they are parts of different models",
        ),
    ],
)
def test_weights_that_do_not_fit_are_found(
    copy: Path, part: str, changes: dict[str, Any], found: str
) -> None:
    edit_config(copy / part / "config.json", **changes)
    create(copy)
    (problem,) = problems(copy)
    assert found in problem


def test_parts_of_different_models_are_found(copy: Path, tiny: ModelFolder) -> None:
    model = DalleBart.load(tiny.bart_folder)
    tensors = {
        "lm_head/kernel": np.zeros((model.config.d_model, 129), np.float32),
        "model/decoder/embed_tokens/embedding": np.zeros((129, model.config.d_model), np.float32),
    }
    save_parameters(copy / "bart", {n: np.asarray(t) for n, t in flatten(model.params).items()} | tensors)
    edit_config(copy / "bart" / "config.json", image_vocab_size=128, decoder_start_token_id=128)
    create(copy)
    (problem,) = problems(copy)
    assert "generates 128 different tokens, but the VQGAN's codebook has 64" in problem


def test_invalid_text_tokenizer_is_found(copy: Path) -> None:
    vocabulary = json.loads((copy / "bart" / "vocab.json").read_text())
    for name in ("tokenizer.json", "vocab.json"):
        (copy / "bart" / name).unlink()
    create(copy)
    (problem,) = problems(copy)
    assert "no text tokenizer" in problem
    more = {f"word{number}": len(vocabulary) + number for number in range(30)}
    (copy / "bart" / "vocab.json").write_text(json.dumps(vocabulary | more))
    create(copy)
    (problem,) = problems(copy)
    assert "the text tokenizer has" in problem


def test_invalid_clip_is_found(copy: Path) -> None:
    weights = copy / "clip" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    create(copy)
    (problem,) = problems(copy)
    assert "truncated in tensor" in problem
    (copy / "clip" / "open_clip_config.json").unlink()
    create(copy)
    (problem,) = problems(copy)
    assert "it has no open_clip_config.json" in problem
