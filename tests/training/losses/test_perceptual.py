"""The perceptual loss: weights of torch and of safetensors, and agreement with torch's own layers."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from smalti.errors import CheckpointError, ModelError
from smalti.training.losses.perceptual import Perceptual

WIDTHS = (4, 6, 8, 5, 7)
"""Of the fixture `thin_vgg`."""
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


def thin_heads() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{number}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for number, width in enumerate(WIDTHS)
    }


def by_torch(
    state: dict[str, torch.Tensor], heads: dict[str, torch.Tensor] | None, a: np.ndarray, b: np.ndarray
) -> float:
    """The distance, with torch's layers in the order of torchvision's VGG16."""
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    total = torch.zeros(())
    sides = [((torch.from_numpy(x) - mean) / deviation).permute(0, 3, 1, 2) for x in (a, b)]
    for number, indices in enumerate(STAGES):
        units = []
        for side in range(2):
            x = sides[side]
            if number:
                x = torch.nn.functional.max_pool2d(x, 2)
            for index in indices:
                x = torch.nn.functional.conv2d(
                    x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1
                ).relu()
            sides[side] = x
            units.append(x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt())
        head = torch.ones(()) if heads is None else heads[f"lin{number}.model.1.weight"]
        total += ((units[0] - units[1]).square() * head).sum(1).mean()
    return float(total)


@pytest.fixture
def two() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.random((2, 32, 32, 3), np.float32), generator.random((2, 32, 32, 3), np.float32)


@pytest.mark.parametrize(("suffix", "save"), [(".pth", torch.save), (".safetensors", save_file)])
@pytest.mark.parametrize("with_heads", [False, True])
def test_the_distance_is_that_of_torch(
    tmp_path: Path,
    thin_vgg: dict[str, torch.Tensor],
    two: tuple[np.ndarray, np.ndarray],
    suffix: str,
    save: Callable[[object, Path], None],
    with_heads: bool,
) -> None:
    weights, heads = tmp_path / f"vgg{suffix}", tmp_path / f"heads{suffix}"
    save(thin_vgg, weights)
    save(thin_heads(), heads)
    a, b = two
    distance = Perceptual.load(weights, heads if with_heads else None).distance
    expected = by_torch(thin_vgg, thin_heads() if with_heads else None, a, b)
    assert float(distance(jnp.asarray(a), jnp.asarray(b))) == pytest.approx(expected, rel=1e-4)
    assert float(distance(jnp.asarray(a), jnp.asarray(a))) == 0


def test_its_gradient_is_finite_where_pictures_are_equal_and_leads_back_where_they_differ(
    tmp_path: Path, thin_vgg: dict[str, torch.Tensor], two: tuple[np.ndarray, np.ndarray]
) -> None:
    torch.save(thin_vgg, tmp_path / "vgg.pth")
    distance = Perceptual.load(tmp_path / "vgg.pth").distance
    real = jnp.asarray(two[0])
    assert np.isfinite(jax.grad(distance)(real, real)).all()
    drawn = jnp.asarray(two[1])
    slope = jax.grad(distance)(drawn, real)
    assert float(distance(drawn - 0.1 * slope / jnp.abs(slope).max(), real)) < float(distance(drawn, real))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("features.7.bias"), r"tensor features\.7\.bias is missing"),
        (
            lambda state: state.update({"features.2.weight": torch.zeros(4, 9, 3, 3)}),
            r"tensor features\.2\.weight has the shape \(4, 9, 3, 3\), must be anyx4x3x3",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path,
    thin_vgg: dict[str, torch.Tensor],
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    state = dict(thin_vgg)
    change(state)
    torch.save(state, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match=message):
        Perceptual.load(tmp_path / "vgg.pth")


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.pth: cannot be read"):
        Perceptual.load(tmp_path / "none.pth")
    with pytest.raises(ModelError, match=r"vgg\.h5: must be a \.safetensors file"):
        Perceptual.load(tmp_path / "vgg.h5")
