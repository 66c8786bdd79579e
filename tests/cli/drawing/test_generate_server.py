"""`smalti generate --server` writes the same files as without a server, drawn by the whole system."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from harness.image_service import ServedGateway, served_gateway
from harness.processes import run_at_terminal, started
from smalti.cli import run
from smalti.client import Client
from smalti.pictures import load_drawing
from smalti.registry.folder import ModelFolder
from smalti.up.servers import free_port
from smalti.v1.job_pb2 import JOB_STATE_CANCELLED
from smalti.v1.model_pb2 import Model, ModelReference

LIMIT = 120.0

# Arguments to (status, standard output, standard error).
Generate = Callable[..., tuple[int, str, str]]


@pytest.fixture
def generate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Runs the command in an empty folder; returns (status, standard output, standard error)."""

    def call(*arguments: str, out: str = "out") -> tuple[int, str, str]:
        status = run(["generate", *arguments, "--out", str(tmp_path / out)])
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


@pytest.fixture(scope="module")
def wire() -> Iterator[ServedGateway]:
    with served_gateway() as served:
        yield served


def test_refusal_of_the_policy_is_one_line(generate: Generate, wire: ServedGateway) -> None:
    status, _, error = generate("refuse", "--server", wire.address)
    assert status == 2
    assert error.count("\n") == 1
    assert "the operator's policy refuses every picture of the job" in error


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same(ours: Path, theirs: Path) -> None:
    """Asserts that both folders hold the same pixels and drawings, except for the last digit of a score."""
    assert names(ours) == names(theirs)
    for name in names(ours):
        with Image.open(ours / name) as one, Image.open(theirs / name) as other:
            assert one.tobytes() == other.tobytes()
        one_says, other_says = load_drawing(ours / name), load_drawing(theirs / name)
        assert one_says.model_copy(update={"score": None}) == other_says.model_copy(update={"score": None})
        assert (one_says.score or 0) == pytest.approx(other_says.score or 0, abs=2e-4)


@pytest.mark.parametrize(
    "variety", [[], ["--vary", "--layout-share", "0.25"], ["--vary", "--diversity", "0.4"]], ids=str
)
def test_server_draws_what_is_drawn_without_one(
    generate: Generate, system: str, worded: ModelFolder, tmp_path: Path, variety: list[str]
) -> None:
    # All are kept: some pictures of the tiny model are equal, and their scores differ at most in the last digit.
    options = ["--seed", "3", "--n", "6", "--candidates", "6", "--temperature", "0.7", "--json", *variety]
    status, far, error = generate("a cat", "A Hippo in a pool", *options, "--server", system)
    assert status == 0
    assert error.count("\n") == 1
    assert 'the model does not know "hippo", "pool"; drawing "an elephant"' in error
    _, near, _ = generate("a cat", "A Hippo in a pool", *options, "--model", str(worded.path), out="local")
    assert_same(tmp_path / "out", tmp_path / "local")
    for one, other in zip(far.splitlines(), near.splitlines(), strict=True):
        ours, theirs = json.loads(one), json.loads(other)
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"pictures", "grid", "warnings"}:
            assert ours[key] == theirs[key], key
        wordings = [
            {picture["candidate"]: picture.get("wording") for picture in each["pictures"]}
            for each in (ours, theirs)
        ]
        assert wordings[0] == wordings[1]
        assert (len({*wordings[0].values()}) > 1) == bool(variety)
        scores = [picture["score"] for picture in ours["pictures"]]
        if "--diversity" not in variety:
            assert scores == sorted(scores, reverse=True)
        assert scores[0] == max(scores)
        assert len(ours["warnings"]) == len(theirs["warnings"])


@pytest.mark.parametrize(
    ("options", "side"),
    [
        (["--refine-strength", "0.7", "--refine-steps", "2"], 64),
        (["--refine"], 64),
        (["--upscale", "4"], 128),
    ],
)
def test_second_pass_of_the_server_is_that_of_the_pipeline(
    generate: Generate, system: str, worded: ModelFolder, tmp_path: Path, options: list[str], side: int
) -> None:
    options = ["a cat", "--seed", "3", "--n", "3", "--candidates", "3", *options]
    status, *_ = generate(*options, "--server", system)
    assert status == 0
    generate(*options, "--model", str(worded.path), out="local")
    assert_same(tmp_path / "out", tmp_path / "local")
    with Image.open(next((tmp_path / "out").glob("*-0.png"))) as picture:
        assert picture.size == (side, side)
    drawing = load_drawing(next((tmp_path / "out").glob("*-0.png")))
    assert drawing.second_pass is not None
    assert drawing.refiner == (worded.refiner_revision if drawing.second_pass.refine else None)
    # The same again, from the record in a file.
    (tmp_path / "out").rename(tmp_path / "kept")
    kept = next((tmp_path / "kept").glob("*-2.png"))
    assert generate("--like", str(kept), "--server", system)[0] == 0
    assert (tmp_path / "out" / kept.name).read_bytes() == kept.read_bytes()


def test_options_that_are_left_out_take_the_defaults_of_the_system(
    generate: Generate, system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALTI_SERVER", system)
    status, output, error = generate("a cat")
    assert (status, error) == (0, "")
    # The system is idle, so it draws more than the model's sixteen.
    assert output.startswith("9 of 32 drawn, seed ")
    assert len(names(tmp_path / "out")) == 10


def test_like_draws_the_same_again_byte_for_byte(generate: Generate, system: str, tmp_path: Path) -> None:
    generate("a hippo", "--seed", "3", "--n", "2", "--candidates", "3", "--top-k", "9", "--server", system)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert len(before) == 3
    (tmp_path / "out").rename(tmp_path / "kept")
    for name in before:
        status, *_ = generate("--like", str(tmp_path / "kept" / name), "--server", system)
        assert status == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert after.keys() == before.keys()
    assert after == before


def test_like_refuses_other_weights(
    generate: Generate, system: str, wire: ServedGateway, tmp_path: Path
) -> None:
    generate("a fox", "--seed", "3", "--n", "1", "--server", wire.address)
    (picture,) = (tmp_path / "out").iterdir()
    status, _, error = generate("--like", str(picture), "--server", system)
    assert status == 2
    assert error.count("\n") == 1
    assert "wire" in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "prompt: is missing"),
        ([" "], "prompt: is empty"),
        (["fox", "--n", "17", "--candidates", "16"], "n: 17 pictures cannot be chosen from 16 candidates"),
        (["fox", "--n", "0"], "n: "),
        (["fox", "--candidates", "100000"], "candidates: "),
        (["fox", "--seed", "-1"], "seed: "),
        (["fox", "--top-p", "0"], "top_p: "),
        (["fox", "--guidance-scale", "nan"], "guidance_scale: "),
        (["x" * 10_000], "prompt: "),
        (["fox", "--model", "no-such-model"], "no-such-model"),
        (["fox", "--like", "x.png"], "like: the picture has its own prompt"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    generate: Generate, system: str, tmp_path: Path, arguments: list[str], said: str
) -> None:
    status, output, error = generate(*arguments, "--server", system)
    assert (status, output) == (2, "")
    assert error.count("\n") == 1
    assert error.startswith(f"smalti: {said}") or said in ("no-such-model",)
    assert said in error
    assert not list(tmp_path.glob("out/*"))


def test_first_digits_of_a_revision_are_enough(
    generate: Generate, wire: ServedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    revisions = [f"sha256:{digit * 64}" for digit in ("0", "a")]
    models = [Model(reference=ModelReference(name="wire", revision=each)) for each in revisions]
    monkeypatch.setattr(wire.gateway, "models", models)
    for given in ("wire@a", f"wire@{revisions[1]}", "wire@sha256:aa"):
        assert generate("a fox", "--n", "1", "--server", wire.address, "--model", given)[0] == 0
        asked = wire.gateway.calls["CreateImages"][-1].parameters.model
        assert (asked.name, asked.revision) == ("wire", revisions[1])
    status, _, error = generate("a fox", "--server", wire.address, "--model", "wire@b")
    assert status == 2
    assert error == (
        f"smalti: model: must be a revision of wire at {wire.address}, got 'b'; there is {'0' * 12}, {'a' * 12}\n"
    )


def test_models_of_a_server_are_listed(
    wire: ServedGateway, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = ModelReference(name="wire", revision=f"sha256:{'a' * 64}")
    monkeypatch.setattr(wire.gateway, "models", [Model(reference=reference, slots=16, default=True)])
    assert run(["models", "--server", wire.address]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.split() == ["wire", "sha256:" + 12 * "a", "16", "default"]
    assert run(["models", "--server", wire.address, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["revision"], entry["slots"]) == (reference.revision, 16)
    assert run(["models", "wire", "--server", wire.address]) == 2
    assert "leave out MODEL" in capsys.readouterr().err


def test_missing_server_is_one_line(generate: Generate) -> None:
    for server in (f"127.0.0.1:{free_port()}", "nowhere"):
        status, _, error = generate("fox", "--server", server)
        assert status == 2
        assert error.count("\n") == 1


@pytest.mark.process
def test_libraries_of_engines_and_services_are_not_needed(wire: ServedGateway, tmp_path: Path) -> None:
    refused = {"jax", "flax", "torch", "celery", "minio", "grpc_health", "grpc_reflection", "sqlalchemy"}
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ModuleNotFoundError(f"{{name}} belongs to another extra", name=name)
sys.meta_path.insert(0, Refuse())
from smalti.cli import main
sys.argv[1:] = ["generate", "a fox", "--server", {wire.address!r}, "--out", {str(tmp_path)!r}]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "3 of 4 drawn" in done.stdout


@pytest.mark.process
def test_ctrl_c_cancels_the_job_and_says_so(wire: ServedGateway, tmp_path: Path) -> None:
    wire.gateway.watching.clear()
    command = [sys.executable, "-m", "smalti", "generate", "wait", "--server", wire.address]
    with started(
        [*command, "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert wire.gateway.watching.wait(LIMIT)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 130
    with Client(wire.address) as client:
        (job,) = (job for job in client.list() if job.parameters.prompt == "wait")
    assert job.state == JOB_STATE_CANCELLED
    assert f"smalti: job {job.id} is cancelled\n" in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.process
def test_terminal_shows_where_the_job_is(wire: ServedGateway, tmp_path: Path) -> None:
    wire.gateway.go_on.clear()
    command = [sys.executable, "-m", "smalti", "generate", "queue", "--server", wire.address]
    status, text = run_at_terminal(
        [*command, "--out", str(tmp_path)],
        environment={"TERM": "xterm-256color", "COLUMNS": "120"},
        on_output=lambda shown: wire.go_on() if b"2 jobs ahead" in shown else None,
    )
    assert status == 0
    assert "waiting, 2 jobs ahead" in text
    assert "▀" in text
    assert "3 of 4 drawn" in text
