"""Compilation: none after warm-up, none at the next start, and the same tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from harness.paths import ROOT
from smalti.compilation import Program, use_compilation_cache
from smalti.engines.encoding import Encoding
from smalti.engines.generator import programs
from smalti.engines.generator.engine import GeneratorEngine
from smalti.engines.generator.requests import Candidate, GenerationRequest
from smalti.errors import RequestCancelledError
from smalti.models.bart import DalleBart
from smalti.parameters import FREE, SamplingParameters
from smalti.registry.folder import ModelFolder

WAIT = 120.0


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
    for each in vars(programs).values():
        if isinstance(each, Program):
            each.clear_cache()
    engine.start()
    assert engine.ready.wait(WAIT)
    warm = len(compilations)
    assert warm
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
    assert compilations[warm:] == []


PROGRAM = """
import hashlib, json, sys
import jax
counted = {{"trace": 0, "compile": 0}}
def listen(event, duration_secs, **_):
    counted["trace"] += event == "/jax/core/compile/jaxpr_trace_duration"
    counted["compile"] += event == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(listen)
from smalti.pipeline import Pipeline
pipeline = Pipeline.load({model!r}, slots=4)
drawn = pipeline.generate("a red cat", 2, 5, seed=3)
drawn += pipeline.generate("a red cat", 2, 3, seed=3, initial_image=drawn[0], keep_rows=1, refine=True, upscale=2)
pipeline.generator.close()
digests = [hashlib.sha256(picture.to_png()).hexdigest() for picture in drawn]
print(json.dumps([counted["trace"], counted["compile"], digests]))
"""


@pytest.mark.process
def test_next_start_traces_nothing_and_draws_the_same(refining: ModelFolder, tmp_path: Path) -> None:
    def run(cache: str) -> list[Any]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "SMALTI_COMPILATION_CACHE": cache}
        program = PROGRAM.format(model=str(refining.path))
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        counted: list[Any] = json.loads(done.stdout)
        return counted

    traced, compiled, drawn = run(str(tmp_path))
    assert traced > 0
    assert compiled > 0
    assert list(tmp_path.glob("*.program"))
    assert run(str(tmp_path)) == [0, 0, drawn]
    *_, without = run("")
    assert without == drawn


def test_empty_variable_switches_the_cache_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("SMALTI_COMPILATION_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] == before
    assert not list(tmp_path.iterdir())
