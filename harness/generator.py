"""A generator's engine as a test sees it: whether it has work, and the number of tokens that it generates."""

from smalti.engines.generator.engine import GeneratorEngine


class TokenCounter:
    """An observer of an engine that counts the generated tokens."""

    def __init__(self) -> None:
        self.tokens = 0

    def stepped(self, seconds: float, active: int, slots: int, tokens: int) -> None:  # noqa: D102
        self.tokens += tokens


def is_idle(engine: GeneratorEngine) -> bool:
    """Returns whether no candidate is generated or waits."""
    return not engine.active and not engine.waiting
