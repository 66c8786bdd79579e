"""`smalti train ...` and `smalti export`, from a config file and data to a model folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.paths import SAMPLES
from smalti.cli import run
from smalti.models.clip import CONFIG_FILE
from smalti.training.trainers.tokenizer import load_vqgan

pytestmark = [
    pytest.mark.usefixtures("orbax_leftovers"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CONFIGS = SAMPLES / "runs"
TRAINERS = ("tokenizer", "generator", "ranker")

# From the name of a trainer and its options to (status, standard output, standard error).
Train = Callable[..., tuple[int, str, str]]


@pytest.fixture
def train(runs: Path, world_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Train:
    """Runs a trainer with its tiny config, on the sample world, into `tmp_path / "run"`."""

    def call(name: str, *options: str, **changes: object) -> tuple[int, str, str]:
        arguments = {"config": CONFIGS / f"{name}.toml", "data": world_data, "out": tmp_path / "run"}
        if name != "tokenizer":
            arguments["tokenizer" if name == "generator" else "vqgan"] = runs / "tokenizer"
        arguments.update(changes)  # type: ignore[arg-type]
        given = [word for key, value in arguments.items() if value for word in (f"--{key}", str(value))]
        status = run(["train", name, *given, *options])
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


def curve(folder: Path) -> dict[int, float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {record["step"]: record["train/loss"] for record in records if "train/loss" in record}


def config(path: Path, name: str, *changes: tuple[str, str]) -> Path:
    text = (CONFIGS / f"{name}.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    return path


def test_help_shows_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "tokenizer", "--help"]) == 0
    assert "[default: at" in capsys.readouterr().out


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_keeps_its_settings_checkpoints_and_log(runs: Path, name: str) -> None:
    folder = runs / name
    assert (folder / "settings.toml").read_bytes() == (CONFIGS / f"{name}.toml").read_bytes()
    assert set(curve(folder)) == {1, 2, 3}
    assert [path.name for path in (folder / "sheets").iterdir()] == ["000003.png"]
    for kept in ("checkpoints", "best"):
        assert "3" in {path.name for path in (folder / kept).iterdir()}
    [events] = (folder / "tensorboard").iterdir()
    assert b"held_out/loss" in events.read_bytes()


# Exact resumption of the other trainers is tested in `trainers/`.
@pytest.mark.parametrize(
    "name",
    [
        "generator",
        pytest.param("tokenizer", marks=pytest.mark.slow),
        pytest.param("ranker", marks=pytest.mark.slow),
    ],
)
def test_a_run_in_two_parts_continues_where_it_stopped(
    train: Train, runs: Path, tmp_path: Path, name: str
) -> None:
    status, output, _ = train(name, "--minutes", "0")
    assert status == 0
    assert output == "the time is over; saved at step 1 of 3, continue with --resume\n"
    # The run keeps what it is trained with, so the ranker's tokenizer need not be given again.
    rest = {"vqgan": None} if name == "ranker" else {}
    status, output, error = train(name, "--resume", **rest)
    assert status == 0
    assert output == f"finished after 3 steps: {tmp_path / 'run'}\n"
    assert "step 3 held out: loss" in error
    assert curve(tmp_path / "run") == pytest.approx(curve(runs / name), rel=1e-4)
    # A finished run ends at once: nothing is prepared, so nothing is read.
    assert train(name, "--resume", **rest, data=tmp_path / "none") == (0, output, "")


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_is_not_started_twice(train: Train, runs: Path, tmp_path: Path, name: str) -> None:
    before = sorted(path for path in (runs / name).rglob("*"))
    status, _, error = train(name, out=runs / name)
    assert status == 2
    assert (
        error
        == f"smalti: out: {runs / name} already holds a run; continue it with --resume, or give another folder\n"
    )
    assert sorted(path for path in (runs / name).rglob("*")) == before
    status, _, error = train(name, "--resume")
    assert (status, error) == (2, f"smalti: run: {tmp_path / 'run'} holds no run: settings.toml is missing\n")


@pytest.mark.parametrize("name", TRAINERS)
def test_a_wrong_config_is_reported_in_one_line_and_leaves_nothing_behind(
    train: Train, tmp_path: Path, name: str
) -> None:
    other = TRAINERS[TRAINERS.index(name) - 1]
    wrong = config(tmp_path / "wrong.toml", name, ("steps = 3", "stepps = 3\nsteps = 3"))
    for given, message in (
        (wrong, f"{wrong}: stepps: there is no such key"),
        (
            CONFIGS / f"{other}.toml",
            f"{CONFIGS / other}.toml: trains: must be '{name}' here, not '{other}'",
        ),
        (tmp_path / "none.toml", f"{tmp_path / 'none.toml'}: cannot be read (No such file or directory)"),
    ):
        status, _, error = train(name, config=given)
        assert status == 2
        assert error.startswith(f"smalti: {message}")
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.toml"]


@pytest.mark.parametrize("name", TRAINERS)
def test_data_without_pictures_is_reported_in_one_line_and_leaves_nothing_behind(
    train: Train, tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    status, _, error = train(name, data=tmp_path / "empty")
    assert status == 2
    assert error.startswith("smalti: data: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize("name", TRAINERS)
def test_a_run_that_cannot_start_keeps_the_files_of_an_existing_folder(
    train: Train, tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    assert train(name, data=tmp_path / "empty")[0] == 2
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_a_run_is_not_resumed_with_another_config(train: Train, runs: Path, tmp_path: Path) -> None:
    run_folder = Path(shutil.copytree(runs / "tokenizer", tmp_path / "run"))
    faster = config(tmp_path / "faster.toml", "tokenizer", ("batch_size = 4", "batch_size = 8"))
    status, _, error = train("tokenizer", "--resume", config=faster)
    assert (status, error) == (
        2,
        f"smalti: batch_size: the run in {run_folder} was started with 4; a resumed run must keep it, not 8\n",
    )


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "tokenizer",
            [("resolution = 64", "resolution = 32")],
            "resolution: must be one of (64, 80, 96, 128, 160, 192), not 32",
        ),
        (
            "ranker",
            [("image_size = 64", "image_size = 32")],
            "resolution: must be one of (64, 80, 96, 128, 160, 192), not 32",
        ),
        ("ranker", [("heads = 2", "heads = 3")], "model: open_clip has no model of these sizes"),
        ("generator", [("d_model = 16", "d_model = 15")], "d_model"),
    ],
)
def test_a_config_that_does_not_fit_leaves_no_run(
    train: Train, tmp_path: Path, name: str, changes: list[tuple[str, str]], message: str
) -> None:
    status, _, error = train(name, config=config(tmp_path / "other.toml", name, *changes))
    assert status == 2
    assert message in error
    assert error.count("smalti:") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other.toml"]


def test_an_unusable_tokenizer_is_named(train: Train, runs: Path, tmp_path: Path) -> None:
    for name, option in (("generator", "tokenizer"), ("ranker", "vqgan")):
        status, _, error = train(name, **{option: runs / "ranker"})
        assert status == 2
        assert "trains: must be 'tokenizer' here, not 'ranker'" in error
        status, _, error = train(name, **{option: tmp_path / "none"})
        assert status == 2
        assert "none" in error
    status, _, error = train("ranker", vqgan=None)
    assert (status, error) == (
        2,
        "smalti: vqgan: must be given, since redrawn is 0.5; give it, or set redrawn = 0\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_decoder_is_trained_on_the_codes_of_another_run_in_parts(
    train: Train, runs: Path, tmp_path: Path
) -> None:
    stage = (
        'freeze = "codes"\naverage = 0.5\n[adversarial]\ncrop = 32\nlayers = 2\nch = 8\nstart = 1\n[model]'
    )
    file = config(tmp_path / "stage.toml", "tokenizer", ("[model]", stage))
    start = ("--from", str(runs / "tokenizer"))
    status, _, error = train("tokenizer", config=file)
    assert status == 2
    assert 'smalti: from: must be given, since freeze is "codes"' in error
    assert train("tokenizer", *start, config=file)[0] == 0
    parts = tmp_path / "parts"
    assert train("tokenizer", *start, "--minutes", "0", config=file, out=parts)[0] == 0
    # The tokenizer that the run started from is in its folder now.
    for _ in range(2):
        assert train("tokenizer", "--minutes", "0", "--resume", config=file, out=parts)[0] == 0
    assert curve(parts) == curve(tmp_path / "run")
    ours, theirs, before = (load_vqgan(folder) for folder in (tmp_path / "run", parts, runs / "tokenizer"))
    pixels = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    codes = np.asarray(before.encode(pixels))
    np.testing.assert_array_equal(ours.encode(pixels), codes)
    np.testing.assert_array_equal(ours.decode(codes), theirs.decode(codes))
    assert not np.array_equal(ours.decode(codes), before.decode(codes))


def test_generate_works_with_an_exported_model(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*more: str) -> tuple[int, str, str]:
        options = {"generator": runs / "generator", "ranker": runs / "ranker", "out": tmp_path / "model"}
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        named = ["--name", "sample", "--licence", "CC0-1.0", "--n", "2", "--candidates", "3"]
        status = run(["export", *words, *named, *more])
        return status, *capsys.readouterr()

    status, output, error = command("--tokenizer", str(runs / "tokenizer"))
    assert (status, error) == (0, "")
    assert output.startswith("sample, ")
    assert (tmp_path / "model" / "clip" / CONFIG_FILE).is_file()
    assert run(["generate", "a red ball", "--model", str(tmp_path / "model"), "--out", str(tmp_path)]) == 0
    assert "2 of 3 drawn" in capsys.readouterr().out
    status, _, error = command()
    assert (status, error) == (
        2,
        f"smalti: out: {tmp_path / 'model'} is not empty; give another folder, or --overwrite\n",
    )
    assert command("--overwrite")[0] == 0
    status, _, error = command("--overwrite", "--n", "4")
    assert status == 2
    assert error.startswith("smalti: n: 4 pictures cannot be chosen from 3")


HARMS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "other": lambda content: b"\xff\0[" * 50,
    "deep": lambda content: b"[" * 50_000,
}
"""From the content of a file to what is left of it."""


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_export_of_damaged_runs_ends_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: str
) -> None:
    whole = {name: Path(shutil.copytree(runs / name, tmp_path / name)) for name in ("generator", "ranker")}
    options = [word for name, folder in whole.items() for word in (f"--{name}", str(folder))]
    command = ["export", *options, "--name", "a", "--licence", "b", "--out", str(tmp_path / "model")]
    files = [
        path
        for folder in whole.values()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"checkpoints", "tensorboard", "sheets"} & set(path.parts)
    ]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        path.write_bytes(HARMS[harm](content))
        status = run(command)
        error = capsys.readouterr().err
        assert status in (0, 2), path
        assert error.count("\n") <= 1, path
        if status == 0:
            shutil.rmtree(tmp_path / "model")
        assert sorted(each.name for each in tmp_path.iterdir()) == ["generator", "ranker"]
        path.write_bytes(content)
    assert run(command) == 0
