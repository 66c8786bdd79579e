"""Random numbers of a batch or a sample, reached at once by its index."""

import numpy as np


def generator_at(seed: int, stream: int, index: int) -> np.random.Generator:
    """Returns the random numbers of an index; a function of the arguments alone.

    Philox counts in the lowest word of its counter. The index is the highest word, so no two indices share a number.

    Args:
        seed: seed of the run.
        stream: separates the uses of a seed from each other.
        index: number of the batch or the sample.
    """
    return np.random.Generator(np.random.Philox(key=(seed, stream), counter=(0, 0, 0, index)))
