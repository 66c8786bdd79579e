"""A batch that fails where a failpoint says so, for tests of faults."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from smalti.engines.encoding import Encoding
from smalti.engines.generator.batch import Batch
from smalti.engines.generator.requests import Candidate
from smalti.engines.generator.state import Prefix
from smalti.service import failpoints

STEP = "generate.engine-step"


class FailingBatch:
    """Passes a failpoint before every step; otherwise the batch that it is given."""

    def __init__(self, batch: Batch) -> None:
        """Takes the batch."""
        self._batch = batch
        self.slots, self.quantum, self.image_length = batch.slots, batch.quantum, batch.image_length

    def warm_up(self) -> None:
        """See `Batch`."""
        self._batch.warm_up()

    def prefill(self, encoding: Encoding) -> Prefix:
        """See `Batch`."""
        return self._batch.prefill(encoding)

    def insert(
        self, prefix: Prefix, slots: Sequence[int], candidates: Sequence[Candidate], given: Sequence[int]
    ) -> None:
        """See `Batch`."""
        self._batch.insert(prefix, slots, candidates, given)

    def release(self, slots: Sequence[int]) -> None:
        """See `Batch`."""
        self._batch.release(slots)

    def step(self) -> Int[np.ndarray, "slots quantum"]:
        """See `Batch`."""
        failpoints.reach(STEP)
        return self._batch.step()
