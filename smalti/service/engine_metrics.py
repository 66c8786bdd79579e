"""Metrics of the generator's engine and of JAX's compiler."""

from smalti.telemetry import Metrics

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event for a program that was compiled, or read from JAX's own cache."""


class EngineMetrics:
    """Counts the steps of a `GeneratorEngine`; an `EngineObserver`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def stepped(self, seconds: float, active: int, slots: int, tokens: int) -> None:  # noqa: D102
        self._metrics.observe("engine_step_seconds", seconds)
        self._metrics.observe("batch_occupancy", active / slots)
        self._metrics.add("tokens_generated_total", tokens)


class CompilationCounter:
    """Counts the programs that this process compiles or reads, from its creation to `close`."""

    def __init__(self, metrics: Metrics) -> None:
        import jax

        from smalti.compilation import PROGRAM_READ

        self._metrics = metrics
        self._events = (COMPILED, PROGRAM_READ)
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def close(self) -> None:
        """Stops counting."""
        import jax

        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event in self._events:
            self._metrics.add("engine_compilations_total")
