"""Telemetry of a service process."""

import numpy as np
import pytest
import structlog
from jaxtyping import Array, Float

from harness.telemetry import only, recording, sample_reader
from harness.waiting import WAIT
from smalti.compilation import Program
from smalti.engines.generator.requests import Candidate
from smalti.parameters import SamplingParameters
from smalti.pipeline import Pipeline
from smalti.service import Telemetry
from smalti.service.compute import ComputeThread
from smalti.telemetry import Metrics, tracing
from smalti.telemetry.logs import about


def double(x: Float[Array, ""]) -> Float[Array, ""]:
    return 2 * x


def test_engine_steps_and_compilations_are_counted(pipeline: Pipeline) -> None:
    engine = pipeline.generator
    prompt = pipeline.encoder.unconditional
    candidates = [Candidate(1, index, SamplingParameters()) for index in range(3)]
    engine.generate(prompt, candidates)  # Compiles what is not compiled yet.
    telemetry = Telemetry(Metrics("generator"))
    telemetry.watch_engine(engine)
    engine.observer = telemetry.engine_observer
    tokens = engine.generate(prompt, candidates)
    engine.observer = None
    value = sample_reader(telemetry.metrics)
    dispatches = -(-tokens.shape[1] // engine.batch.steps_per_dispatch)
    assert value("tokens_generated_total") == tokens.size
    assert value("engine_step_seconds_count") == dispatches
    assert value("batch_occupancy_sum") == pytest.approx(dispatches * 3 / engine.slots)
    assert value("engine_compilations_total") == 0
    assert (value("slots_total"), value("slots_active"), value("requests_waiting")) == (engine.slots, 0, 0)
    import jax

    jax.jit(lambda x: x * 3)(4.0).block_until_ready()
    compiled = value("engine_compilations_total")
    assert compiled > 0
    for read in (1, 2):  # The second time at the latest, it is read from the folder.
        Program(double)(np.float32(4))
        assert value("engine_compilations_total") == compiled + read
    telemetry.close()


def test_compute_thread_runs_in_the_context_of_the_caller() -> None:
    with recording() as (collector, traced):
        compute = ComputeThread(max_permits=1, stall_seconds=WAIT, check=lambda: None)
        for job in ("one", "two"):
            with tracing.span(job), about(job=job):
                assert compute.run(structlog.contextvars.get_contextvars) == {"job": job}
        compute.close()
        traced.close()
        for job in ("one", "two"):
            span = only(collector.named(job))
            assert [name for name, _ in span.events] == ["compute begins", "compute ends"]
