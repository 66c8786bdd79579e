"""What the TPU compiler says: nothing is copied; the step of the generator pads nothing, and its state is donated."""

import pytest

from benchmarks.tpu.__main__ import compile_apart
from benchmarks.tpu.estimate import read
from benchmarks.tpu.kernels import START_CYCLES, counted, parse
from benchmarks.tpu.rows import all_rows
from benchmarks.tpu.table import cells, milliseconds

PROGRAM = """
%body.1 (p: bf16[8]) -> bf16[8] {
  %a = bf16[32,1024]{1,0:T(8,128)(2,1)} fusion(%p), backend_config={"estimated_cycles":"1500"}
  %r = f32[32,1024]{1,0:T(8,128)S(1)} all-reduce(%a), backend_config={"estimated_cycles":"500"}
  %extend.7 = f32[32,1024]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", config={"bytes_accessed":"640"}
  %extend.8 = f32[32,1024]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", config={"bytes_accessed":"640"}
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
    assert found.kernels == {"extend": (2, 640)}


def test_a_line_takes_the_longer_bound() -> None:
    found = {
        "entry_cycles": 16_000, "body_cycles": 1_499_000, "copied": 0, "collectives": 0, "collective_bytes": 0,
        "floor_bytes": 409_500_000, "state_bytes": 100, "aliased_bytes": 104, "memory_bytes": 2**30,
        "compile_seconds": 9.0, "kernels": {},
    }  # fmt: skip
    assert milliseconds(STEP, found) == pytest.approx(1.0)
    named = ("mini-step-16-v5e-1x1", "1", "0.5", "0.50", "1", "1.00 of 16", "4.0 %", "0")
    assert cells(STEP, found)[:8] == named
    assert milliseconds(STEP, {**found, "floor_bytes": 1_638_000_000}) == pytest.approx(2.0)


# Bundles of a kernel: a loop over the slots, then one over the blocks, in which five run once for a slot.
BUNDLES = """
     0   :  { %s1 = smov 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 }
   0x2   : > { %3 = sbr.rel (!%p1) target = $region2 }
   0x3   :  { %s4 = smov 0 }
   0x4 LB: > { %s5 = sadd.s32 1, %s4 }
   0x5   : > { %6 = sbr.rel (%p2) target = $region3 }
   0x6   :  {}
   0x7   : > { %7 = vst [vmem:[#a]] %v1 }
   0x8   : > { %8 = vst [vmem:[#a]] %v2 }
   0x9 PF: > { %v3 = vld [vmem:[#a]] }
   0xa   : > { %v4 = vadd.f32 %v3, %v3 }
   0xb   :  { %9 = sbr.rel (!%p3) target = $region4 }
   0xc   :  { %10 = vsyncpa [#b], 1 }
"""


def test_bundles_of_a_kernel_are_counted_by_their_loops() -> None:
    found = parse(BUNDLES)
    assert (found.once, found.slot, found.block) == (4, 5, 4)
    assert found.cycles(16, 4) == 4 + 16 * (5 + 4 * 4)


def test_a_kernel_takes_the_longer_of_its_bundles_and_its_bytes() -> None:
    kernel = {"count": 12, **counted(parse(BUNDLES), 16, 4, 8_190_000, 8_000_000)}
    # Blocks of 4 of which a picture has 2.5 on average.
    assert kernel["mean_bytes"] == 8_190_000 - 3_000_000
    found = {
        "entry_cycles": 0, "body_cycles": 150_000, "floor_bytes": 12 * 8_190_000 + 81_900_000, "kernels": {"e": kernel},
    }  # fmt: skip
    start = 12 * START_CYCLES / 1.5e6
    assert milliseconds(STEP, found) == pytest.approx(0.1 + 12 * 0.01 + start)
    assert milliseconds(STEP, found, mean=True) == pytest.approx(0.1 + 12 * 0.01 * 5.19 / 8.19 + start)
    slow = {**kernel, "cycles": 30_000}
    assert milliseconds(STEP, {**found, "kernels": {"e": slow}}) == pytest.approx(0.1 + 12 * 0.02 + start)


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
    # The attention of each layer is two kernels, which take little longer than their bytes.
    assert {name: kernel["count"] for name, kernel in found["kernels"].items()} == {
        "extend": 12,
        "attend_to_prompts": 12,
    }
    extend = found["kernels"]["extend"]
    assert extend["cycles"] / 1.5e9 < extend["bytes"] / 819e9
    assert extend["bytes"] < 1.06 * state / 12
    assert found["temporary_bytes"] < 0.2 * state  # Less than one more cache.


@pytest.mark.slow
@pytest.mark.process
def test_decoding_a_picture_copies_nothing() -> None:
    row = ROWS["vqgan-decode-4-v5e-1x1"]
    found = compile_apart(row)
    assert found["copied"] == 0
    assert milliseconds(row, found) / row.slots < 3
