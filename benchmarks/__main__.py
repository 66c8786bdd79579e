"""Measures the generator and the decoder, compared with min-dalle if it is installed, the system, and the web service.

    python -m benchmarks                                  the whole table; half an hour on two cores
    python -m benchmarks --parts tokens single            some of it
    python -m benchmarks --write docs/performance.md      writes the table into this page
    python -m benchmarks --variants                       the generator with other numbers of blocks
    python -m benchmarks --quick                          tiny shapes, to check that it runs

Nothing else may compute at the same time; the share of the cores that other processes used is below the table.
"""

import argparse
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from benchmarks import accepting, generating, page, report, starting, system, web
from benchmarks.measuring import Bystanders, Limits, Times, describe_machine, format_seconds, measure_limits
from benchmarks.peer import INSTALL, PeerTimes, PeerWork, measure_peer
from benchmarks.report import Row, compared
from smalti.engines.encoding import Encoding
from smalti.engines.generator.engine import DEFAULT_SLOTS
from smalti.errors import InvalidInputError
from smalti.models.bart import DalleBart, DalleBartConfig
from smalti.models.vqgan import VQGANConfig
from smalti.registry.published import MEGA, MINI, VQGAN_F16_16384
from smalti.testing.model import TINY_VQGAN, tiny_bart_config

PARTS = ("start", "tokens", "single", "arrivals", "decode", "gpu", "system", "web", "accept")
PICTURES = 9


@dataclass(frozen=True)
class Plan:
    """The sizes and durations of the measurements."""

    config: DalleBartConfig
    vqgan: VQGANConfig
    slots: int
    repeats: int
    peer_steps: int
    peer_pictures: int
    batches: float
    """Duration of the random requests, in multiples of the time of a full batch."""
    load: system.Load
    """Load for measuring the overhead of the system."""
    crowd: web.Crowd
    """Clients of the web service."""
    callers: accepting.Callers
    """Callers of the gateways."""
    square: int
    """Rows and columns of the matrices for measuring the machine's limits."""
    reading: int
    """Number of bytes to read for measuring the machine's limits."""


QUICK = Plan(
    tiny_bart_config(300), TINY_VQGAN, 4, 2, 2, 0, 2.0, system.QUICK, web.QUICK, accepting.QUICK, 256, 2**22
)


def full_plan(repeats: int, peer_steps: int) -> Plan:
    """Returns the plan for the published mini shape."""
    config = DalleBartConfig.from_fields(MINI)
    vqgan = VQGANConfig.from_fields(VQGAN_F16_16384)
    return Plan(
        config,
        vqgan,
        DEFAULT_SLOTS,
        repeats,
        peer_steps,
        PICTURES,
        3.0,
        system.FULL,
        web.FULL,
        accepting.FULL,
        4096,
        2**29,
    )


class Bench:
    """Measures the chosen parts; measurements that several parts need are made once."""

    def __init__(self, plan: Plan, parts: frozenset[str]) -> None:
        """Prepares the measurement of the given parts."""
        self.plan = plan
        self.parts = parts
        self.rows: list[Row] = []

    def run(self) -> None:
        """Measures the parts and fills `rows`."""
        if "start" in self.parts:
            self.rows += starting.measure(self.plan.repeats)
        if self.parts & {"tokens", "arrivals"}:
            self._many()
        if "single" in self.parts:
            self._single()
        if "decode" in self.parts:
            self._decode()
        if "gpu" in self.parts:
            self._gpu()
        if "system" in self.parts:
            self.rows += system.measure(self.plan.load)
        if "web" in self.parts:
            self.rows += web.measure(self.plan.crowd)
            self.rows += page.measure(self.plan.repeats)
        if "accept" in self.parts:
            self.rows += accepting.measure(self.plan.callers)

    def variants(self) -> None:
        """Fills `rows` with the time of a full batch for other numbers of blocks."""
        plan = self.plan
        for blocks in (1, 2, 4, 8, 16):
            with generating.engine(self._model, plan.slots, jnp.float32, blocks) as engine:
                times = generating.time_tokens(engine, self._prompt, plan.slots, plan.repeats)
            self.rows.append(Row(f"tokens of {plan.slots} candidates, {blocks} blocks", str(times)))

    @cached_property
    def peer(self) -> PeerTimes | None:
        """Times of min-dalle for all parts that are compared with it; None if it is not installed."""
        config, plan = self.plan.config, self.plan
        counts = {"tokens": PICTURES, "single": 1}
        return measure_peer(
            PeerWork(
                d_model=config.d_model,
                layers=config.decoder_layers,
                heads=config.decoder_attention_heads,
                ffn=config.decoder_ffn_dim,
                vocabulary=config.image_vocab_size,
                text_length=config.max_text_length,
                candidates=tuple(counts[part] for part in counts if part in self.parts),
                steps=plan.peer_steps,
                pictures=plan.peer_pictures if "decode" in self.parts else 0,
                repeats=plan.repeats,
            )
        )

    @cached_property
    def _model(self) -> DalleBart:
        return generating.random_decoder(self.plan.config, np.float32)

    @cached_property
    def _prompt(self) -> Encoding:
        return generating.random_prompt(self.plan.config)

    def _many(self) -> None:
        """Measures several candidates with the default engine, and requests at random times."""
        plan = self.plan
        limits = measure_limits(jnp.float32, side=plan.square, size=plan.reading)
        with generating.engine(self._model, plan.slots, jnp.float32) as engine:
            if "tokens" in self.parts:
                ours = generating.time_tokens(engine, self._prompt, min(PICTURES, plan.slots), plan.repeats)
                self._compare_tokens(f"tokens of {PICTURES} candidates", ours, PICTURES, 5)
            batch = generating.time_tokens(engine, self._prompt, plan.slots, plan.repeats)
            if "tokens" in self.parts:
                self._compare_with_limits(batch, limits)
            if "arrivals" in self.parts:
                full = plan.slots * plan.config.image_length / batch.median
                rate = generating.arrival_rate(engine, plan.config, batch.median, plan.batches)
                shown = f"{rate:.0f} of {full:.0f} tokens/s"
                self.rows.append(
                    Row(
                        "requests that arrive at random, over a full batch",
                        shown,
                        "",
                        *compared(rate / full, 0.95),
                    )
                )
            if "single" in self.parts:
                one = generating.time_tokens(engine, self._prompt, 1, plan.repeats)
                self._compare_tokens(f"tokens of 1 candidate, {plan.slots} slots", one, 1, None)

    def _single(self) -> None:
        with generating.engine(self._model, 1, jnp.float32) as engine:
            ours = generating.time_tokens(engine, self._prompt, 1, self.plan.repeats)
        self._compare_tokens("tokens of 1 candidate, 1 slot", ours, 1, 3)

    def _compare_tokens(self, work: str, ours: Times, candidates: int, goal: float | None) -> None:
        if self.peer is None:
            self.rows.append(
                Row(work, str(ours), "not installed", "", "" if goal is None else f"at least {goal:g}x")
            )
            return
        theirs = Times(tuple(self.peer.steps[candidates])).scaled(self.plan.config.image_length)
        result = compared(theirs.median / ours.median, goal or 0, "x")
        self.rows.append(Row(work, str(ours), str(theirs), result[0], result[1] if goal else ""))

    def _compare_with_limits(self, batch: Times, limits: Limits) -> None:
        plan = self.plan
        operations, size = generating.step_work(plan.config, plan.slots, jnp.float32)
        floor = plan.config.image_length * limits.floor(operations, size)
        at_best = (
            f"floor {format_seconds(floor)}: {operations / 1e9:.3g} GFLOP and {size / 1e9:.3g} GB a step"
        )
        at_best += f" at {limits.operations / 1e9:.3g} GFLOP/s and {limits.bandwidth / 1e9:.3g} GB/s"
        self.rows.append(
            Row(
                f"tokens of {plan.slots} candidates, share of the machine's limit ({at_best})",
                str(batch),
                "",
                *compared(floor / batch.median, 0.5),
            )
        )

    def _decode(self) -> None:
        plan = self.plan
        ours = generating.time_decode(plan.vqgan, PICTURES, plan.repeats)
        work = f"VQGAN decode of {PICTURES} pictures"
        if self.peer is None or not self.peer.decodes:
            reason = "not installed" if self.peer is None else "not measured"
            self.rows.append(Row(work, str(ours), reason, "", "at least 1.2x"))
            return
        theirs = Times(tuple(self.peer.decodes))
        self.rows.append(Row(work, str(ours), str(theirs), *compared(theirs.median / ours.median, 1.2, "x")))

    def _gpu(self) -> None:
        """Measures the mega shape if there is a GPU."""
        work = "tokens of 16 candidates with guidance, mega shape, bfloat16, one GPU"
        if jax.default_backend() != "gpu":
            self.rows.append(Row(work, "no GPU here", "", "", "1 s, and at least 10x"))
            return
        config = DalleBartConfig.from_fields(MEGA)
        bfloat16 = jnp.bfloat16
        limits = measure_limits(bfloat16, side=8192, size=2**32)
        model = generating.random_decoder(config, ml_dtypes.bfloat16)
        with generating.engine(model, 16, bfloat16) as engine:
            ours = generating.time_tokens(
                engine, generating.random_prompt(config), 16, max(5, self.plan.repeats)
            )
        operations, size = generating.step_work(config, 16, bfloat16)
        floor = config.image_length * limits.floor(operations, size)
        theirs = measure_peer(
            PeerWork(
                config.d_model,
                config.decoder_layers,
                config.decoder_attention_heads,
                config.decoder_ffn_dim,
                config.image_vocab_size,
                config.max_text_length,
                (16,),
                64,
                0,
                1,
                "cuda",
            )
        )
        shown, result = "not installed", ""
        if theirs is not None:
            times = Times(tuple(theirs.steps[16])).scaled(config.image_length)
            shown, result = str(times), f"{times.median / ours.median:.1f}x"
        work += f" (floor {format_seconds(floor)}: {size / 1e9:.3g} GB a step at {limits.bandwidth / 1e9:.0f} GB/s)"
        self.rows.append(Row(work, str(ours), shown, result, "1 s, and at least 10x"))


def facts(plan: Plan, bystanders: Bystanders) -> Mapping[str, str]:
    """Returns the facts on which the results depend."""
    packages = ("smalti", "jax", "jaxlib", "numpy", "torch", "min-dalle")
    versions = [f"{package} {_version(package)}" for package in packages]
    others = bystanders.share()
    verdict = "" if others < 0.05 else "; the times are not valid"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        **describe_machine(),
        "versions": f"Python {platform.python_version()}, " + ", ".join(versions),
        "times": f"median of {plan.repeats} runs after a warm-up run (minimum to maximum); for min-dalle's tokens, "
        f"{plan.peer_steps} steps are timed and a step counts {plan.config.image_length} times",
        "other processes": f"used {others:.0%} of the cores during the runs{verdict}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument("--repeats", type=int, default=3, help="number of runs of each measurement")
    parser.add_argument(
        "--peer-steps", type=int, default=32, help="number of timed steps of min-dalle's decoder"
    )
    parser.add_argument("--variants", action="store_true", help="measure other numbers of blocks instead")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this page")
    parser.add_argument("--quick", action="store_true", help="use tiny shapes, only to check that it runs")
    options = parser.parse_args()
    plan = QUICK if options.quick else full_plan(options.repeats, options.peer_steps)
    bystanders, bench = Bystanders(), Bench(plan, frozenset(options.parts))
    if options.variants:
        bench.variants()
    else:
        bench.run()
    known = dict(facts(plan, bystanders))
    if _version("min-dalle") == "not installed":
        known["min-dalle"] = f"not installed: {INSTALL}"
    report.show(bench.rows, known)
    if options.write:
        try:
            report.write(options.write, bench.rows, known)
        except (InvalidInputError, OSError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
