"""Inputs of batches in memory, plans of them, and results of shards without engines."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from smalti.batches import BatchDefaults, BatchPlan, InputFormat
from smalti.parameters import SamplingParameters

DEFAULTS = BatchDefaults(default_n=2, default_candidates=4, sampling=SamplingParameters(top_k=20))

MakePlan = Callable[..., BatchPlan]


def plan_of(
    content: bytes,
    input_format: InputFormat | str,
    defaults: BatchDefaults = DEFAULTS,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> BatchPlan:
    return BatchPlan(
        open=lambda: io.BytesIO(content),
        format=InputFormat(input_format),
        defaults=defaults,
        columns=columns or {},
        **options,
    )


@pytest.fixture
def make_plan() -> MakePlan:
    return plan_of
