"""A batch with failpoints, for fault tests."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import Batch
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.state import Prefix
from smalti.service import failpoints

STEP = "generate.engine-step"
REQUEST = "generate.engine-request"


class FailingBatch:
    """Wraps a batch, and triggers failpoints before every step."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        # Of the candidates in slots; a finished one stays until its slot is used again.
        self._seeds: dict[int, int] = {}
        self.slots, self.image_length = batch.slots, batch.image_length
        self.steps_per_dispatch = batch.steps_per_dispatch

    def warm_up(self, *, everything: bool) -> None:  # noqa: D102
        self._batch.warm_up(everything=everything)

    def prefill(self, encoding: Encoding) -> Prefix:  # noqa: D102
        return self._batch.prefill(encoding)

    def insert(  # noqa: D102
        self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate]
    ) -> None:
        self._seeds.update(zip(slots, (candidate.seed for candidate in candidates), strict=True))
        self._batch.insert(prefix, slots, candidates)

    def release(self, slots: Sequence[int]) -> None:  # noqa: D102
        for slot in slots:
            self._seeds.pop(slot, None)
        self._batch.release(slots)

    def step(self) -> Int[np.ndarray, "slots steps"]:  # noqa: D102
        failpoints.reach(STEP)
        for seed in set(self._seeds.values()):
            failpoints.reach(REQUEST, seed=seed)
        return self._batch.step()

    def check(self) -> None:  # noqa: D102
        self._batch.check()

    def reset(self) -> None:  # noqa: D102
        self._seeds.clear()
        self._batch.reset()
