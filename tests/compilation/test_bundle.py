"""Programs that are compiled ahead: loaded where they fit and are trusted, and otherwise refused with the reason."""

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from smalti.compilation import (
    Ahead,
    BundleWriter,
    Program,
    compiling_ahead,
    find_topology,
    kept_shapes,
    use_compilation_cache,
)
from smalti.compilation.bundle import MANIFEST
from smalti.errors import InvalidInputError, SmaltiWarning

traced: list[str] = []
"""The name of each function that was traced."""


@dataclass(frozen=True)
class Sizes:
    factor: int


def multiply(
    sizes: Sizes, weights: dict[str, Float[Array, "rows columns"]], x: Float[Array, " columns"]
) -> dict[str, Float[Array, " rows"]]:
    traced.append("multiply")
    return {name: sizes.factor * each @ x for name, each in weights.items()}


def fresh() -> Program[Any]:
    """Returns the program as another process would see it."""
    traced.clear()
    jax.clear_caches()
    return Program(multiply, static_argnums=(0,))


def shapes_of(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    traced.append("shapes")
    return {"kernel": (sizes.factor, 2)}


WEIGHTS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
X = np.ones(3, np.float32)


@dataclass(frozen=True)
class Made:
    """A folder of one program."""

    path: Path
    digest: str

    @property
    def program(self) -> Path:
        (file,) = self.path.glob("*.program")
        return file

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Changes the list."""
        manifest = json.loads((self.path / MANIFEST).read_text())
        change(manifest)
        (self.path / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    path = tmp_path / "ahead"
    path.mkdir()
    found = find_topology("cpu")
    writer = BundleWriter(path, found[0])
    with compiling_ahead(Ahead(devices=found, keep=writer.keep, keep_shapes=writer.keep_shapes)):
        result = fresh()(Sizes(2), WEIGHTS, X)["a"]
        kept_shapes(shapes_of)(Sizes(2))
    # Nothing was run; who copies the result to the host gets zeros.
    assert result.shape == (2,)
    assert np.asarray(result).tolist() == [0, 0]
    return Made(path, writer.finish({"model": "none"}))


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes the settings name a folder of programs, and no cache."""

    def use(path: Path, digest: str = "") -> None:
        monkeypatch.setenv("SMALTI_COMPILATION_CACHE", "")
        monkeypatch.setenv("SMALTI_COMPILED", str(path))
        monkeypatch.setenv("SMALTI_COMPILED_SHA256", digest)
        use_compilation_cache()

    yield use
    monkeypatch.delenv("SMALTI_COMPILED")
    use_compilation_cache()


def run() -> list[float]:
    """Runs the program as another process would; returns the values of its result."""
    values: list[float] = np.asarray(fresh()(Sizes(2), WEIGHTS, X)["a"]).tolist()
    assert values == [6, 24]
    return values


def test_what_was_compiled_ahead_is_loaded(made: Made, use: Callable[..., None]) -> None:
    use(made.path)
    run()
    assert kept_shapes(shapes_of)(Sizes(2)) == {"kernel": (2, 2)}
    assert traced == []
    # An array that is on the device already is no other program.
    fresh()(Sizes(2), jax.device_put(WEIGHTS, jax.devices()[0]), X)
    assert traced == []
    assert kept_shapes(shapes_of)(Sizes(3)) == {"kernel": (3, 2)}
    assert traced == ["shapes"]


@pytest.mark.parametrize(
    ("sizes", "weights", "reason"),
    [
        (Sizes(3), WEIGHTS, "static.sizes.factor is 2 there and 3 here"),
        (Sizes(2), {"b": WEIGHTS["a"]}, "arrays.weights['a'] is [[2, 3]"),
        (
            Sizes(2),
            {"a": WEIGHTS["a"].astype(np.float16)},
            "arrays.weights['a'] is float32 there and float16 here",
        ),
    ],
    ids=["static", "name", "type"],
)
def test_other_call_is_compiled_and_the_log_says_what_differs(
    made: Made,
    use: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    sizes: Sizes,
    weights: dict[str, Any],
    reason: str,
) -> None:
    use(made.path)
    with caplog.at_level(logging.WARNING):
        fresh()(sizes, weights, X)
    assert traced == ["multiply"]
    (message,) = caplog.messages
    assert "multiply is not loaded from" in message
    assert reason in message


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("device", "TPU v5 lite", "device is TPU v5 lite there and cpu here"),
        ("code", "0", "they were made from other code of Smalti"),
        ("processor", "another", "they were made for another processor"),
        ("versions", {"jax": "0.1.0"}, f"versions.jax is 0.1.0 there and {jax.__version__} here"),
        ("flags", {"XLA_FLAGS": "--xla_no"}, "flags.XLA_FLAGS is --xla_no there"),
    ],
)
def test_programs_for_another_machine_are_not_used(
    made: Made, use: Callable[..., None], name: str, value: Any, reason: str
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        there = manifest["made_for"]
        there[name] = {**there[name], **value} if isinstance(value, dict) else value

    made.edit(change)
    with pytest.warns(
        SmaltiWarning, match="SMALTI_COMPILED .* is not used, so what it holds is compiled"
    ) as said:
        use(made.path)
    assert reason in str(said[0].message)
    run()
    assert traced == ["multiply"]


class Intruder:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def tamper(made: Made) -> Path:
    """Exchanges the program for one that leaves a file behind when it is loaded; returns that file's path."""
    left = made.path / "intruded"
    made.program.write_bytes(pickle.dumps(Intruder(left)))
    return left


@pytest.mark.parametrize("by_digest", [False, True])
def test_changed_program_is_never_run(
    made: Made, use: Callable[..., None], caplog: pytest.LogCaptureFixture, by_digest: bool
) -> None:
    left = tamper(made)
    use(made.path, made.digest if by_digest else "")
    run()
    assert traced == ["multiply"]
    assert "is not the file of the list: its SHA-256 differs" in caplog.messages[0]
    assert not left.exists()


def test_changed_list_is_never_used(made: Made, use: Callable[..., None]) -> None:
    left = tamper(made)
    content = made.program.read_bytes()
    made.edit(lambda manifest: manifest["programs"][0].update(sha256=sha256(content).hexdigest()))
    with pytest.warns(SmaltiWarning, match="not the one that the settings name"):
        use(made.path, made.digest)
    run()
    assert not left.exists()
    # Without the refusal, its code runs.
    use(made.path)
    run()
    assert left.exists()


def test_folder_of_others_needs_its_digest(made: Made, use: Callable[..., None]) -> None:
    made.path.chmod(0o777)
    with pytest.warns(SmaltiWarning, match="others can write to"):
        use(made.path)
    run()
    assert traced == ["multiply"]
    use(made.path, made.digest)
    run()
    assert traced == []


def test_program_that_others_can_write_is_not_loaded(
    made: Made, use: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    made.program.chmod(0o666)
    use(made.path)
    run()
    assert traced == ["multiply"]
    assert "is not a file that only this user can write" in caplog.messages[0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "programs.json: "),
        ("{", "programs.json is not a list of programs of this version"),
    ],
)
@pytest.mark.parametrize("digested", [False, True])
def test_what_is_no_folder_of_programs_is_said(
    tmp_path: Path, use: Callable[..., None], content: str | None, reason: str, digested: bool
) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_text(content)
    with pytest.warns(SmaltiWarning, match=reason):
        use(tmp_path, sha256((content or "").encode()).hexdigest() if digested else "")
    run()


def test_absent_folder_is_said_and_not_made(tmp_path: Path, use: Callable[..., None]) -> None:
    with pytest.warns(SmaltiWarning, match="No such file or directory"):
        use(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_donated_argument_is_consumed(tmp_path: Path, use: Callable[..., None]) -> None:
    def increase(state: Float[Array, " places"]) -> Float[Array, " places"]:
        return state + 1

    found = find_topology("cpu")
    writer = BundleWriter(tmp_path, found[0])
    with compiling_ahead(Ahead(devices=found, keep=writer.keep, keep_shapes=writer.keep_shapes)):
        Program(increase, donate_argnums=(0,)).prepare(jax.ShapeDtypeStruct((1000,), jnp.float32))
    writer.finish({})
    memory = writer.programs[0].memory
    assert memory is not None
    assert memory["arguments"] == 4000
    assert memory["results"] < 4000
    use(tmp_path)
    state = jax.device_put(np.zeros(1000, np.float32))
    assert float(Program(increase, donate_argnums=(0,))(state).sum()) == 1000
    assert state.is_deleted()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tpu", "must be cpu, gpu, or a kind of TPU"),
        ("v5e", "must be cpu, gpu"),
        ("gpu", "this machine has none"),
    ],
)
def test_what_is_no_device_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        find_topology(text)
