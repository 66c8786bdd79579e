"""The feature network of the evaluation: the pinned weights, what they see, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from smalti.errors import ModelError
from smalti.training.evaluation.features import FEATURES, FeatureNetwork


@pytest.fixture(scope="module")
def network() -> FeatureNetwork:
    return FeatureNetwork.load()


def noise(count: int, side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def test_features_are_those_of_each_picture_alone(network: FeatureNetwork) -> None:
    pixels = noise(40, 64)
    features = network.features(pixels)
    assert features.shape == (40, FEATURES)
    np.testing.assert_allclose(network.features(pixels[35:36])[0], features[35], atol=1e-4)
    assert network.features(pixels[:0]).shape == (0, FEATURES)


def test_pictures_of_other_sizes_compare(network: FeatureNetwork) -> None:
    def waves(side: int) -> NDArray[np.uint8]:
        across = 127.5 + 100 * np.sin((np.arange(side) + 0.5) / side * 9)
        return np.broadcast_to(across[None, None, :, None], (1, side, side, 3)).astype(np.uint8)

    apart = np.abs(network.features(waves(64)) - network.features(waves(128))).mean()
    assert apart < 0.1 * np.abs(network.features(waves(64)) - network.features(noise(1, 64))).mean()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"other")
    with pytest.raises(ModelError, match="not the pinned weights"):
        FeatureNetwork.load(file)
    with pytest.raises(ModelError, match="cannot be read"):
        FeatureNetwork.load(tmp_path / "missing.pth")
