"""`smalti generate`, in a separate process where that matters."""

import contextlib
import gc
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from harness.processes import run_at_terminal, started
from smalti.cli import run
from smalti.pictures import load_drawing
from smalti.registry.folder import ModelFolder
from smalti.testing.model import tiny_model

# Arguments to (status, standard output, standard error).
Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def generate(tiny: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Runs the command with the tiny model in an empty folder; returns (status, standard output, standard error)."""

    def call(*arguments: str, model: str | None = str(tiny.path)) -> tuple[int, str, str]:
        chosen = ["--model", model] if model else []
        status = run(["generate", *arguments, "--out", str(tmp_path / "out"), *chosen])
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def test_nine_of_sixteen_and_a_grid(generate: Generate, tmp_path: Path) -> None:
    status, output, _ = generate("An Avocado Armchair", "--seed", "7")
    assert status == 0
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(files) == 10
    assert "an-avocado-armchair-7-grid.png" in files
    assert all(name.startswith("an-avocado-armchair-7-") for name in files)
    assert "9 of 16 drawn, seed 7" in output
    with Image.open(tmp_path / "out" / "an-avocado-armchair-7-grid.png") as sheet:
        assert sheet.size == (3 * 32 + 4, 3 * 32 + 4)


def test_json_holds_everything(generate: Generate, tmp_path: Path) -> None:
    status, output, _ = generate(
        "a fox", "a car", "--n", "2", "--candidates", "3", "--no-grid", "--json", "--top-k", "9"
    )
    assert status == 0
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["prompt"] for line in lines] == ["a fox", "a car"]
    assert lines[0]["seed"] == lines[1]["seed"]
    assert lines[0]["sampling"]["top_k"] == 9
    assert lines[0]["grid"] is None
    assert lines[0]["drawn"] is None
    scores = [picture["score"] for picture in lines[0]["pictures"]]
    assert scores == sorted(scores, reverse=True)
    files = [Path(picture["file"]) for line in lines for picture in line["pictures"]]
    assert sorted(files) == sorted((tmp_path / "out").iterdir())


def test_like_draws_a_picture_again_byte_for_byte(generate: Generate, tmp_path: Path) -> None:
    generate("a fox", "--seed", "3", "--n", "4", "--candidates", "5", "--temperature", "0.7")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    single = next(path for path in before if "grid" not in path.name)
    single.unlink()
    (tmp_path / "kept.png").write_bytes(before[single])
    status, *_ = generate("--like", str(tmp_path / "kept.png"))
    assert status == 0
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_like_draws_a_grid_again_byte_for_byte(generate: Generate, tmp_path: Path) -> None:
    generate("a fox", "--seed", "3", "--n", "4", "--candidates", "5")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out").rename(tmp_path / "kept")
    generate("--like", str(tmp_path / "kept" / "a-fox-3-grid.png"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


VARIED = [
    "--vary", "--diversity", "0.4", "--temperature", "0.7", "--layout-share", "0.25", "--layout-temperature", "2",
    "--layout-guidance-scale", "3",
]  # fmt: skip


def test_varied_pictures_tell_their_wording_and_are_drawn_again_byte_for_byte(
    generate: Generate, worded: ModelFolder, tmp_path: Path
) -> None:
    options = ["--seed", "3", "--n", "4", "--candidates", "6", "--json", *VARIED]
    status, output, _ = generate("a red cat", *options, model=str(worded.path))
    assert status == 0
    line = json.loads(output)
    assert (line["prompt"], line["drawn"], line["vary"], line["diversity"]) == ("a red cat", None, True, 0.4)
    wordings = {picture["wording"] for picture in line["pictures"]}
    assert len(wordings) > 1
    assert all("red cat" in wording and wording.endswith(" style") for wording in wordings)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out").rename(tmp_path / "kept")
    for name in before:
        assert generate("--like", str(tmp_path / "kept" / name), model=str(worded.path))[0] == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    # Whatever the model's default is, the record decides.
    _, output, _ = generate(
        "--like",
        str(tmp_path / "kept" / "a-red-cat-3-grid.png"),
        "--no-vary",
        "--json",
        model=str(worded.path),
    )
    assert "vary" not in json.loads(output)
    assert not any("wording" in picture for picture in json.loads(output)["pictures"])


def test_options_beside_like_replace_recorded_values(generate: Generate, tmp_path: Path) -> None:
    generate("a fox", "--seed", "3", "--n", "1", "--candidates", "1")
    _, output, _ = generate("--like", str(tmp_path / "out" / "a-fox-3-0.png"), "--seed", "4", "--json")
    drawing = json.loads(output)
    assert (drawing["prompt"], drawing["seed"]) == ("a fox", 4)


def test_like_refuses_other_weights_unless_a_model_is_named(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate("a fox", "--seed", "3", "--n", "1", "--candidates", "1")
    monkeypatch.setenv("SMALTI_MODELS", str(tmp_path / "models"))
    other = tiny_model(tmp_path / "models" / "tiny", seed=2)
    status, _, error = generate("--like", str(tmp_path / "out" / "a-fox-3-0.png"), model=None)
    assert status == 2
    assert f"but tiny is now at {other.revision[:19]} and would draw another one" in error
    assert error.count("\n") == 1
    status, *_ = generate("--like", str(tmp_path / "out" / "a-fox-3-0.png"), model="tiny")
    assert status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "prompt: is missing"),
        ([""], "prompt: is empty"),
        (["fox", ""], "prompt: is empty"),
        (["fox", "--n", "17"], "n: 17 pictures cannot be chosen from 16 candidates"),
        (["fox", "--n", "0"], "n: "),
        (["fox", "--n", "many"], "--n"),
        (["fox", "--seed", "-1"], "seed: "),
        (["fox", "--temperature", "-1"], "temperature: "),
        (["fox", "--top-p", "0"], "top_p: "),
        (["fox", "--guidance-scale", "nan"], "guidance_scale: "),
        (["fox", "--layout-share", "1.5"], "layout_share: "),
        (["fox", "--layout-temperature", "-1"], "layout_temperature: "),
        (["fox", "--layout-guidance-scale", "101"], "layout_guidance_scale: "),
        (["fox", "--diversity", "2"], "diversity: must be from 0 to 1, not 2.0"),
        (["fox", "--like", "x.png"], "like: the picture has its own prompt"),
        (["--like", "x.png"], "like: x.png: there is no such file"),
        (["fox", "--unknown-option"], "--unknown-option"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    generate: Generate, tmp_path: Path, arguments: list[str], said: str
) -> None:
    status, output, error = generate(*arguments)
    assert status == 2
    assert output == ""
    assert error.count("\n") == 1
    assert said in error
    assert not list(tmp_path.glob("out/*"))


def test_more_candidates_than_slots(generate: Generate) -> None:
    status, output, _ = generate("fox", "--n", "18", "--candidates", "18", "--no-grid", "--json")
    assert status == 0
    assert len(json.loads(output)["pictures"]) == 18


def test_unusable_models_are_one_line(generate: Generate, tmp_path: Path) -> None:
    for model, said in (("no-such-model", "no-such-model"), (str(tmp_path), "model.json")):
        status, _, error = generate("fox", model=model)
        assert status == 2
        assert said in error
        assert error.count("\n") == 1


def test_folder_that_cannot_be_created_is_refused_before_the_work(
    tiny: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    status = run(["generate", "fox", "--model", str(tiny.path), "--out", str(tmp_path / "file")])
    assert status == 2
    assert "out: " in capsys.readouterr().err


@pytest.mark.process
def test_ctrl_c_leaves_only_complete_files(tiny: ModelFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "smalti", "generate", *(f"fox {i}" for i in range(500)), "--json"]
    command += ["--model", str(tiny.path), "--out", str(out), "--n", "1", "--candidates", "1"]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    files = list(out.iterdir())
    assert 0 < len(files) < 500
    for path in files:
        assert load_drawing(path).prompt.startswith("fox")


def test_ctrl_c_that_python_loses_is_recorded(
    tiny: ModelFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python prints and ignores a KeyboardInterrupt in a callback of the garbage collector."""
    pressed: list[int] = []

    def press(phase: str, information: dict[str, int]) -> None:
        if not pressed and "torch" in sys.modules and list(tmp_path.glob("out/fox-0-*")):
            pressed.append(1)
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(press)
    try:
        prompts = [f"fox {number}" for number in range(500)]
        options = ["--n", "1", "--candidates", "1", "--no-grid"]
        status = run(
            ["generate", *prompts, "--model", str(tiny.path), "--out", str(tmp_path / "out"), *options]
        )
    finally:
        gc.callbacks.remove(press)
    assert pressed
    assert status == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) < 500


@pytest.mark.process
def test_terminal_gets_a_preview(tiny: ModelFolder, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "smalti", "generate", "fox", "--n", "1"]
    status, text = run_at_terminal(
        [*command, "--model", str(tiny.path), "--out", str(tmp_path)],
        environment={"TERM": "xterm-256color"},
        standard_error=False,
    )
    assert status == 0
    assert text.count("▀") == 32 * 16
    assert "1 of 16 drawn" in text


def test_unknown_words_are_replaced_with_one_line_of_warning(
    generate: Generate, worded: ModelFolder, tmp_path: Path
) -> None:
    options = ["--seed", "3", "--n", "2", "--candidates", "3"]
    status, output, error = generate("A Hippo in a pool", *options, model=str(worded.path))
    assert status == 0
    assert error == (
        'smalti: warning: the model does not know "hippo", "pool"; drawing "an elephant". It knows 16 things: '
        f"smalti models --words {worded.path}\n"
    )
    assert "a-hippo-in-a-pool-3-grid.png" in output
    _, _, error = generate("an elephant", *options, model=str(worded.path))
    assert error == ""
    # The same pictures and scores, but each file has the name and prompt that the user gave.
    ours, theirs = (
        {path.stem.rpartition("-")[2]: path for path in (tmp_path / "out").glob(f"{stem}-3-*.png")}
        for stem in ("a-hippo-in-a-pool", "an-elephant")
    )
    assert len(ours) == 3
    assert ours.keys() == theirs.keys()
    for index, path in ours.items():
        with Image.open(path) as drawn, Image.open(theirs[index]) as known:
            assert drawn.tobytes() == known.tobytes()
        drawing = load_drawing(path)
        assert (drawing.prompt, drawing.drawn) == ("A Hippo in a pool", "an elephant")
        assert drawing.model_copy(update={"prompt": "an elephant", "drawn": None}) == load_drawing(
            theirs[index]
        )


def test_unknown_words_are_drawn_again_byte_for_byte(
    generate: Generate, worded: ModelFolder, tmp_path: Path
) -> None:
    generate("a hippo", "--seed", "3", "--n", "2", "--candidates", "3", model=str(worded.path))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "out").rename(tmp_path / "kept")
    for name in before:
        status, *_ = generate("--like", str(tmp_path / "kept" / name), model=str(worded.path))
        assert status == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_json_holds_the_effective_prompt_and_every_warning(generate: Generate, worded: ModelFolder) -> None:
    prompts = ["a hippo", "a cat"]
    status, output, error = generate(
        *prompts, "--n", "1", "--candidates", "1", "--json", model=str(worded.path)
    )
    assert status == 0
    hippo, cat = (json.loads(line) for line in output.splitlines())
    assert (hippo["prompt"], hippo["drawn"]) == ("a hippo", "an elephant")
    assert error == f"smalti: warning: {hippo['warnings'][0]}\n"
    assert len(hippo["warnings"]) == 1
    assert (cat["drawn"], cat["warnings"]) == (None, [])


def test_invalid_words_file_is_one_line(generate: Generate, worded: ModelFolder, tmp_path: Path) -> None:
    shutil.copytree(worded.path, tmp_path / "broken")
    (tmp_path / "broken" / "words.json").write_text("{}")
    status, output, error = generate("a cat", model=str(tmp_path / "broken"))
    assert (status, output) == (2, "")
    assert error == f"smalti: {tmp_path}/broken/words.json: things: field required\n"
    assert not (tmp_path / "out").exists()


def test_warning_about_a_long_prompt_is_one_line(generate: Generate) -> None:
    status, _, error = generate("red " * 200, "--n", "1", "--candidates", "1", "--no-grid")
    assert status == 0
    assert error.count("\n") == 1
    assert "warning: " in error
    assert "64" in error


def test_help_shows_defaults(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["generate", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for default in ("random", "the model's, usually 9", "the shipped model, or the gateway's", "pictures"):
        assert f"[default: {default}]" in shown
