"""What the TPU compiler says: nothing is copied; the step of the generator pads nothing, and its state is donated."""

import pytest

from benchmarks.tpu.__main__ import compile_apart
from benchmarks.tpu.estimate import read
from benchmarks.tpu.rows import all_rows
from benchmarks.tpu.table import cells, milliseconds

PROGRAM = """
%body.1 (p: bf16[8]) -> bf16[8] {
  %a = bf16[32,1024]{1,0:T(8,128)(2,1)} fusion(%p), backend_config={"estimated_cycles":"1500"}
  %r = f32[32,1024]{1,0:T(8,128)S(1)} all-reduce(%a), backend_config={"estimated_cycles":"500"}
}

ENTRY %main.2 (p: bf16[8]) -> bf16[8] {
  %c = bf16[32,256,1024]{2,1,0:T(8,128)(2,1)} copy(%p), backend_config={"estimated_cycles":"700"}
  %near = bf16[32,256,1024]{2,1,0:T(8,128)(2,1)S(1)} copy(%p)
  %out = (bf16[16,64]{1,0:T(8,128)}, bf16[16,64]{1,0:T(8,128)S(1)}, u32[]) copy-start(%near)
  %far = (bf16[64,1024]{1,0:T(8,128)}, bf16[64,1024]{1,0:T(8,128)S(1)}, u32[]) copy-start(%near)
  %small = s32[16]{0} copy(%p), backend_config={"estimated_cycles":"30"}
}
"""
ROWS = {row.name: row for row in all_rows()}
STEP = ROWS["mini-step-16-v5e-1x1"]


def test_cycles_copies_and_collectives_are_summed() -> None:
    found = read(PROGRAM)
    assert (found.entry_cycles, found.body_cycles) == (730, 2000)
    # Neither what goes into the chip's own memory, nor what is small.
    assert found.copied == 2 * 32 * 256 * 1024 + 2 * 64 * 1024
    assert (found.collectives, found.collective_bytes) == (1, 4 * 32 * 1024)


def test_a_line_takes_the_longer_bound() -> None:
    found = {
        "entry_cycles": 16_000, "body_cycles": 1_499_000, "copied": 0, "collectives": 0, "collective_bytes": 0,
        "floor_bytes": 409_500_000, "state_bytes": 100, "aliased_bytes": 104, "memory_bytes": 2**30,
        "compile_seconds": 9.0,
    }  # fmt: skip
    assert milliseconds(STEP, found) == pytest.approx(1.0)
    assert cells(STEP, found)[:7] == ("mini-step-16-v5e-1x1", "1", "0.5", "0.50", "1.00 of 16", "4.0 %", "0")
    assert milliseconds(STEP, {**found, "floor_bytes": 1_638_000_000}) == pytest.approx(2.0)


def test_rows_have_names_of_their_own() -> None:
    assert len(ROWS) == len(all_rows())
    assert {row.program for row in ROWS.values()} >= {
        "step",
        "prefill",
        "prime",
        "insert",
        "release",
        "decode",
        "encode",
    }


@pytest.mark.slow
@pytest.mark.process
def test_a_step_copies_and_pads_nothing() -> None:
    found = compile_apart(STEP)
    state = found["state_bytes"]
    assert state <= found["aliased_bytes"] <= 1.05 * state  # Donated whole, and hardly padded.
    assert found["copied"] < 0.01 * state
    assert found["temporary_bytes"] < 0.2 * state  # Less than one more cache.


@pytest.mark.slow
@pytest.mark.process
def test_decoding_a_picture_copies_nothing() -> None:
    row = ROWS["vqgan-decode-4-v5e-1x1"]
    found = compile_apart(row)
    assert found["copied"] == 0
    assert milliseconds(row, found) / row.slots < 3
