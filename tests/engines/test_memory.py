"""What a generator needs of its devices, and one that does not fit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from smalti.engines.generator.memory import WORKING_BYTES, Footprint, check_fits
from smalti.engines.generator.partition import HEADS_FIRST, ROWS_FIRST, Partition
from smalti.engines.generator.state import empty_state
from smalti.engines.generator.weights import decoder_weights
from smalti.errors import InvalidInputError
from smalti.models import bart
from smalti.models.bart import DalleBartConfig
from smalti.registry.published import MEGA
from smalti.testing.model import random_parameters, tiny_bart_config


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("cache_layout", [HEADS_FIRST, ROWS_FIRST])
def test_footprint_is_what_weights_and_state_take(cache_layout: str, int8: bool) -> None:
    config, slots = tiny_bart_config(300), 4
    partition = replace(Partition.over(cache_layout=cache_layout), int8_cache=int8, int8_weights=int8)
    weights = decoder_weights(
        config, random_parameters(bart.parameter_shapes(config), 0), jnp.float32, partition
    )
    state = empty_state(partition, config, slots, jnp.float32, 1, 1)
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves((weights, state)))
    found = Footprint.on(partition, config, jnp.dtype(jnp.float32)).per_device(slots)
    assert found - WORKING_BYTES == taken


def test_generator_that_does_not_fit_is_refused_with_the_arithmetic() -> None:
    config, partition = DalleBartConfig.from_fields(MEGA), Partition.over(cache_layout=ROWS_FIRST)
    room = 16 * 2**30
    check_fits(partition, config, 64, jnp.dtype(jnp.bfloat16), limit=room)
    line = "with 128 slots on 1x1, the generator needs 16.4 GiB of 16.0 of each device: fewer slots, 1x4 or "
    with pytest.raises(InvalidInputError, match=f"^mesh: {line}SMALTI_GENERATOR_INT8$"):
        check_fits(partition, config, 128, jnp.dtype(jnp.bfloat16), limit=room)
    short = replace(partition, int8_cache=True, int8_weights=True)
    check_fits(short, config, 128, jnp.dtype(jnp.bfloat16), limit=room)
    with pytest.raises(InvalidInputError, match=r"fewer slots or 1x4$"):
        check_fits(short, config, 400, jnp.dtype(jnp.bfloat16), limit=room)
    # A CPU does not say what it has.
    check_fits(partition, config, 10**6, jnp.dtype(jnp.bfloat16))
