"""Compilation: none after warm-up, none at the next start, and the same tokens."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from harness.paths import ROOT
from smalti.engines.compilation import use_compilation_cache
from smalti.engines.encoding import Encoding
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate, GenerationRequest
from smalti.errors import RequestCancelledError
from smalti.models.bart import DalleBart
from smalti.parameters import FREE, SamplingParameters

WAIT = 120.0
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """The programs that JAX compiles or reads from its cache during the test."""
    counted: list[str] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILED:
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.unregister_event_duration_listener(listen)


def make(golden: Path) -> tuple[GeneratorEngine, list[Encoding]]:
    folder = golden / "dallebart_scan"
    expected = np.load(folder / "expected.npz")
    rows = zip(expected["encoder_hidden"], expected["attention_mask"], strict=True)
    empty = Encoding(expected["uncond_encoder_hidden"][0], expected["uncond_attention_mask"][0])
    return GeneratorEngine.of(DalleBart.load(folder), empty, slots=3), [Encoding(*row) for row in rows]


def test_nothing_compiles_after_warm_up(golden: Path, compilations: list[str]) -> None:
    engine, prompts = make(golden)
    # Another test may have compiled the same programs in this process.
    jax.clear_caches()
    engine.start()
    assert engine.ready.wait(WAIT)
    warm = len(compilations)
    assert warm > 0
    handles = []
    for number, encoding in enumerate((*prompts, *prompts)):
        sampling = SamplingParameters(
            temperature=number / 4, guidance_scale=1 + number, top_k=7 * number, top_p=1 - number / 10
        )
        # At the beginning, and further on.
        given = (*range(3 * number % 16), *((FREE, 3) if number % 2 else ()))[:16]
        candidates = tuple(
            Candidate(2**62 - number, index, sampling, given=given) for index in range(1 + number)
        )
        handles.append(engine.submit(GenerationRequest(encodings=(encoding,), candidates=candidates)))
    cancelled = engine.submit(GenerationRequest(encodings=(prompts[0],), candidates=candidates))
    next(handles[0].runs())
    cancelled.cancel()
    for handle in handles:
        assert handle.result(WAIT).shape[1] == 16
    with pytest.raises(RequestCancelledError):
        cancelled.result(WAIT)
    engine.close()
    assert len(compilations) == warm


PROGRAM = """
import importlib.util, json, sys
from pathlib import Path
import jax
spec = importlib.util.spec_from_file_location("start", {here!r})
start = importlib.util.module_from_spec(spec)
spec.loader.exec_module(start)
print(json.dumps(start.start(Path({golden!r}))))
"""


def start(golden: Path) -> list[Any]:
    """Starts an engine in this process; returns the numbers of cache hits and misses, and tokens."""
    counted = {"/jax/compilation_cache/cache_hits": 0, "/jax/compilation_cache/cache_misses": 0}

    def listen(event: str, **_: Any) -> None:
        if event in counted:
            counted[event] += 1

    jax.monitoring.register_event_listener(listen)
    use_compilation_cache()
    engine, prompts = make(golden)
    sampling = SamplingParameters(temperature=0.9, guidance_scale=3, top_k=30, top_p=0.95)
    drawn = []
    for given in ((), (1, 2), (1, FREE, 2)):
        candidates = tuple(Candidate(5, index, sampling, given=given) for index in range(4))
        request = GenerationRequest(encodings=(prompts[0],), candidates=candidates)
        drawn.append(engine.submit(request).result(WAIT).tolist())
    engine.close()
    return [*counted.values(), drawn]


@pytest.mark.process
def test_next_start_compiles_nothing_and_gives_the_same_tokens(golden: Path, tmp_path: Path) -> None:
    def run(cache: str) -> list[Any]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SMALTI_COMPILATION_CACHE": cache}
        program = PROGRAM.format(here=str(Path(__file__)), golden=str(golden))
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        counted: list[Any] = json.loads(done.stdout)
        return counted

    found, missed, drawn = run(str(tmp_path))
    assert missed > 0
    assert list(tmp_path.iterdir())
    found, missed, again = run(str(tmp_path))
    assert found > 0
    assert missed == 0
    assert again == drawn


def test_empty_variable_switches_the_cache_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] == before
    assert not list(tmp_path.iterdir())
