"""What the generator's engine and the compiler tell of themselves."""

from smalti.telemetry.metrics import Metrics

COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX calls the moment when a program was compiled, or read from the cache."""


class EngineMetrics:
    """Counts what a `GeneratorEngine` does; see `smalti.engines.generator.engine.EngineObserver`."""

    def __init__(self, metrics: Metrics) -> None:
        """Counts into the metrics."""
        self._metrics = metrics

    def stepped(self, seconds: float, active: int, slots: int, tokens: int) -> None:
        """See `EngineObserver`."""
        self._metrics.observe("engine_step_seconds", seconds)
        self._metrics.observe("batch_occupancy", active / slots)
        self._metrics.add("tokens_generated_total", tokens)


class CompilationCounter:
    """Counts every program that JAX compiles in this process."""

    def __init__(self, metrics: Metrics) -> None:
        """Begins to count."""
        import jax

        self._metrics = metrics
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def close(self) -> None:
        """Counts no more."""
        import jax

        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            self._metrics.add("engine_compilations_total")
