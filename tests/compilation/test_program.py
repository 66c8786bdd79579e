"""Programs that are kept: nothing is traced twice, the key has all that they depend on, and results are the same."""

import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float
from pydantic import BaseModel

from harness.paths import ROOT
from smalti.compilation import Program, kept_shapes, use_compilation_cache
from smalti.compilation.cache import kept
from smalti.compilation.folder import PrivateFolder
from smalti.compilation.target import CODE, code_digest, target
from smalti.errors import SmaltiWarning

traced: list[str] = []
"""The name of each function that was traced."""


@dataclass(frozen=True)
class Sizes:
    factor: int


def multiply(
    sizes: Sizes, weights: dict[str, Float[Array, "rows columns"]], x: Float[Array, " columns"]
) -> dict[str, Float[Array, " rows"]]:
    traced.append("multiply")
    return {name: jnp.tanh(sizes.factor * each @ x) for name, each in weights.items()}


def increase(state: Float[Array, " places"]) -> Float[Array, " places"]:
    traced.append("increase")
    return state + 1


def fresh() -> Program[Any]:
    """Returns the program as another process would see it."""
    traced.clear()
    return Program(multiply, static_argnums=(0,))


def arguments(columns: int = 3) -> tuple[dict[str, np.ndarray], np.ndarray]:
    random = np.random.default_rng(columns)
    return {"a": random.normal(size=(4, columns)).astype(np.float32)}, np.ones(columns, np.float32)


def files(cache: Path) -> set[str]:
    return {file.name for file in cache.glob("*.program")}


def test_next_process_traces_nothing_and_computes_the_same(cache: Path) -> None:
    expected = jax.jit(multiply, static_argnums=0)(Sizes(2), *arguments())["a"]
    for process in range(3):
        program = fresh()
        results = [program(Sizes(2), *arguments())["a"] for _ in range(2)]
        assert traced == ([] if process else ["multiply"])
        for result in results:
            assert np.asarray(result).tobytes() == np.asarray(expected).tobytes()
    assert len(files(cache)) == 1


def test_other_arguments_are_other_programs(cache: Path) -> None:
    fresh()(Sizes(2), *arguments())
    weights, x = arguments()
    for sizes, *others in (
        (Sizes(3), weights, x),
        (Sizes(2), *arguments(5)),
        (Sizes(2), {"b": weights["a"]}, x),
        (Sizes(2), weights, x.astype(np.float16)),
        (Sizes(2), weights, jax.device_put(x, jax.devices()[0])),
    ):
        program = fresh()
        result = program(sizes, *others)
        assert traced == ["multiply"]
        plain = jax.jit(multiply, static_argnums=0)(sizes, *others)
        assert jax.tree.all(jax.tree.map(np.array_equal, result, plain))
    assert len(files(cache)) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true"),
        lambda patch: patch.setattr("smalti.compilation.target.version", lambda package: "0.0"),
        lambda patch: patch.setattr("smalti.compilation.target.code_digest", lambda: "changed"),
        lambda patch: patch.setattr("smalti.compilation.target._processor", lambda: "another one"),
    ],
    ids=["flags", "versions", "code", "processor"],
)
def test_change_of_the_machine_or_the_code_is_noticed(
    cache: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fresh()(Sizes(2), *arguments())
    change(monkeypatch)
    target.cache_clear()
    try:
        fresh()(Sizes(2), *arguments())
        assert traced == ["multiply"]
    finally:
        monkeypatch.undo()
        target.cache_clear()


def test_option_of_jax_is_noticed(cache: Path) -> None:
    fresh()(Sizes(2), *arguments())
    target.cache_clear()
    try:
        with jax.default_matmul_precision("float32"):
            fresh()(Sizes(2), *arguments())
    finally:
        target.cache_clear()
    assert traced == ["multiply"]


def test_code_of_every_program_is_part_of_the_key() -> None:
    package = ROOT / "smalti"
    makers = [
        file.relative_to(package)
        for file in package.rglob("*.py")
        if "smalti.compilation import" in file.read_text(encoding="utf-8")
        and any(word in file.read_text(encoding="utf-8") for word in ("Program(", "@program", "@kept_shapes"))
    ]
    assert len(makers) > 3
    assert {file.parts[0] for file in makers} <= set(CODE)
    assert len(code_digest()) == 64


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("cut", None),
        ("nonsense", "it does not begin with what made it"),
        ("other", f"JAX {jax.__version__} cannot read it"),
        ("version", "it was made by jax 0.1.0"),
    ],
    ids=str,
)
def test_damaged_program_is_made_again(
    cache: Path, caplog: pytest.LogCaptureFixture, damage: str, reason: str | None
) -> None:
    expected = np.asarray(fresh()(Sizes(2), *arguments())["a"])
    (file,) = cache.glob("*.program")
    folder = kept()
    assert folder is not None
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        # Written whole, but not by us: a pickle of another form, one that is none, and another version's.
        header, _, pickled = (folder.load(file.stem) or b"").partition(b"\n")
        content = {
            "nonsense": b"nonsense",
            "other": header + b"\n" + pickle.dumps([1, 2]),
            "version": header.replace(jax.__version__.encode(), b"0.1.0") + b"\n" + pickled,
        }
        folder.write(file.stem, content[damage])
    with caplog.at_level(logging.WARNING):
        again = np.asarray(fresh()(Sizes(2), *arguments())["a"])
    assert traced == ["multiply"]
    assert len(caplog.messages) == (0 if reason is None else 1)
    assert reason is None or reason in caplog.messages[0]
    assert np.array_equal(again, expected)
    fresh()(Sizes(2), *arguments())
    assert traced == []


class Intruder(BaseModel):
    """Leaves a file behind when it is unpickled."""

    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_program_in_a_folder_of_others_is_never_run(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh()(Sizes(2), *arguments())
    (file,) = cache.glob("*.program")
    folder = kept()
    assert folder is not None
    header, _, _ = (folder.load(file.stem) or b"").partition(b"\n")
    folder.write(file.stem, header + b"\n" + pickle.dumps(Intruder(path=tmp_path / "intruded")))
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", "")
    use_compilation_cache()
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", str(cache))
    cache.chmod(0o777)
    with pytest.warns(
        SmaltiWarning, match="is not used, so every start compiles: others can write to"
    ) as warned:
        use_compilation_cache()
    assert len(warned) == 1
    assert kept() is None
    fresh()(Sizes(2), *arguments())
    assert not (tmp_path / "intruded").exists()
    cache.chmod(0o700)
    use_compilation_cache()
    fresh()(Sizes(2), *arguments())
    assert (tmp_path / "intruded").exists()  # Without the refusal, its code runs.


def test_folder_that_cannot_be_written_is_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fresh()(Sizes(2), *arguments())
    (file,) = cache.glob("*.program")
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", "")
    use_compilation_cache()
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", str(cache))
    monkeypatch.setattr(PrivateFolder, "find_problem", lambda self: "Read-only file system")
    with pytest.warns(
        SmaltiWarning, match="cannot be written, so every start compiles what it lacks: Read"
    ) as warned:
        use_compilation_cache()
    assert len(warned) == 1
    file.chmod(0o400)
    fresh()(Sizes(2), *arguments())
    fresh()(Sizes(3), *arguments())
    assert list(cache.glob("*.program")) == [file]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_program_that_jax_has_in_its_cache_is_kept_whole(cache: Path) -> None:
    # JAX cannot write again what it has read from its cache; the next process would fail when it runs it.
    for _ in range(2):
        jax.clear_caches()
        jax.jit(multiply, static_argnums=0)(Sizes(7), *arguments())
    expected = np.asarray(fresh()(Sizes(7), *arguments())["a"])
    for file in cache.glob("*.program"):
        file.unlink()
    for _ in range(2):
        assert np.array_equal(np.asarray(fresh()(Sizes(7), *arguments())["a"]), expected)
    assert traced == []


def test_donated_argument_is_consumed(cache: Path) -> None:
    for _ in range(2):
        state = jax.device_put(np.zeros(1000, np.float32))
        result = Program(increase, donate_argnums=(0,))(state)
        assert state.is_deleted()
        assert float(result.sum()) == 1000


def test_program_inside_another_one_is_traced_with_it(cache: Path) -> None:
    program = Program(increase)
    np.testing.assert_array_equal(jax.jit(lambda x: program(x) * 2)(np.ones(2, np.float32)), [4, 4])
    assert files(cache) == set()


def test_options_for_tpus_are_kept_from_other_compilers(cache: Path) -> None:
    options = {"xla_tpu_run_space_to_batch": False}
    plain, program = fresh(), Program(multiply, static_argnums=(0,), tpu_options=options)
    first, second = (each(Sizes(2), *arguments())["a"] for each in (plain, program))
    np.testing.assert_array_equal(first, second)
    # A CPU has one program for both.
    assert traced == ["multiply"]
    assert len(files(cache)) == 1
    assert (program.compiler_options("tpu"), program.compiler_options("cpu")) == (options, {})


def test_preparing_compiles_without_running(cache: Path) -> None:
    program = fresh()
    weights, x = arguments()
    program.prepare(Sizes(2), {"a": jax.ShapeDtypeStruct(weights["a"].shape, np.float32)}, x)
    assert len(files(cache)) == 1
    program(Sizes(2), weights, x)
    assert traced == ["multiply"]


def test_folder_keeps_its_size(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE_BYTES", "1")
    fresh()(Sizes(2), *arguments())
    assert files(cache) == set()


def test_program_that_cannot_be_written_runs(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(cache)
    with caplog.at_level(logging.WARNING):
        fresh()(Sizes(2), *arguments())
    assert len(caplog.messages) == 1
    assert "cannot be kept" in caplog.messages[0]


def test_shapes_are_traced_once(cache: Path) -> None:
    calls: list[Sizes] = []

    def shapes_of(sizes: Sizes) -> dict[str, tuple[int, ...]]:
        calls.append(sizes)
        return {"kernel": (sizes.factor, 2), "scale": ()}

    for _ in range(2):
        shapes = kept_shapes(shapes_of)
        assert shapes(Sizes(3)) == {"kernel": (3, 2), "scale": ()}
        shapes(Sizes(3))["kernel"] = ()
        assert shapes(Sizes(3)) == {"kernel": (3, 2), "scale": ()}
    assert calls == [Sizes(3)]
    assert kept_shapes(shapes_of)(Sizes(4))["kernel"] == (4, 2)


SCRIPT = """
import sys
import numpy as np
from pathlib import Path
from smalti.compilation import Program, use_compilation_cache
import jax.numpy as jnp

def work(x):
    print("traced")
    return jnp.sin(x) @ x

use_compilation_cache()
print(float(Program(work)(np.arange(1000, dtype=np.float32))))
"""


@pytest.mark.process
def test_two_processes_at_once(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "SMALTI_COMPILATION_CACHE": str(tmp_path / "compiled"),
    }

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True
        )

    def finish(process: "subprocess.Popen[str]") -> list[str]:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return output.split()

    outputs = [finish(process) for process in [start(), start()]]
    assert outputs[0][-1] == outputs[1][-1]
    assert finish(start()) == outputs[0][-1:]
    assert len(files(tmp_path / "compiled")) == 1
