"""`smalti batch run` in this process."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smalti.batches import (
    SUCCESS_FILE,
    SUMMARY_FILE,
    TAR,
    BatchDescription,
    BatchLayout,
    BatchPlan,
    BatchSummary,
    InputRecord,
    PictureFormat,
    PlanCounts,
    PlannedShard,
    ShardRange,
    finish,
)
from smalti.cli.batches.careful import draw_carefully
from smalti.cli.batches.drawing import DrawnShard, Line
from smalti.cli.batches.inputs import Input, open_input
from smalti.cli.batches.options import RunOptions
from smalti.cli.batches.places import FIELD, RunPlace, open_place
from smalti.cli.batches.progress import BatchProgress, batch_progress
from smalti.cli.batches.records import (
    RUN_FILE,
    Begun,
    RunRecord,
    check_empty,
    check_same,
    check_whole,
    comparable,
    comparable_run,
    finished_shards,
    load_begun,
    load_run,
    load_summary,
    remove_begun,
    result_parts,
    write_begun,
    write_part,
)
from smalti.cli.batches.stages import PipelineStages
from smalti.cli.extras import needs_extra
from smalti.entrance import signals
from smalti.errors import InvalidInputError, SmaltiError
from smalti.registry import library
from smalti.registry.spec import ModelSpec
from smalti.starting import without_collection

if TYPE_CHECKING:
    from smalti.pipeline import Pipeline

OnInvalid = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class LocalRun:
    """A run: the input, the model, and what is drawn."""

    input: Input
    plan: BatchPlan
    spec: ModelSpec
    options: RunOptions

    def record(self, counts: PlanCounts, input_record: InputRecord) -> RunRecord:
        """Returns what the run leaves in `_work/`."""
        second_pass = self.plan.defaults.second_pass
        return RunRecord(
            description=BatchDescription(
                input=input_record,
                model=self.spec.folder.name,
                parameters=self.plan.defaults,
                picture_format=PictureFormat(self.options.picture_format.value),
                shard_prompts=self.plan.shard_prompts,
                prompts=counts.prompts,
                blank=counts.blank,
            ),
            counts=counts,
            revision=self.spec.folder.revision,
            refiner=self.spec.refiner_revision if second_pass and second_pass.refine else None,
            columns=dict(self.plan.columns),
            ignore_columns=self.plan.ignore_columns,
            skip_invalid=self.plan.skip_invalid,
        )

    def check(self, progress: BatchProgress, on_invalid: OnInvalid) -> PlanCounts:
        """Checks the whole input; raises `InvalidInputError` if it cannot be used."""

        def show(rows: int) -> None:
            signals.check()
            progress.show("Reading", rows)

        return self.plan.check(on_rows=show, on_invalid=on_invalid)

    def load(self) -> "Pipeline":
        """Loads the model."""
        with signals.at_once(), needs_extra("local"), without_collection():
            from smalti.devices import check_flags

            check_flags()
            from smalti.pipeline import Pipeline

            slots = {} if self.options.slots is None else {"slots": self.options.slots}
            return Pipeline.load(self.spec.folder.path, **slots)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run has come to."""

    summary: BatchSummary
    was_complete: bool = False
    """Whether everything was there before."""


def prepare(source: Input, options: RunOptions) -> LocalRun:
    """Returns a run, with its options checked.

    Raises:
        SmaltiError: an option or the model cannot be used.
    """
    spec = ModelSpec.load(library.find(options.model))
    plan = BatchPlan(
        open=source.open,
        format=source.format,
        defaults=options.defaults(spec),
        columns=options.columns,
        ignore_columns=options.ignore_columns,
        skip_invalid=options.skip_invalid,
        shard_prompts=options.shard_prompts,
    )
    return LocalRun(input=source, plan=plan, spec=spec, options=options)


def run(options: RunOptions, out: str, on_invalid: OnInvalid) -> Outcome:
    """Draws a batch, or goes on with it.

    Args:
        options: the options.
        out: where to write.
        on_invalid: called with the problem of each row that is left out.

    Raises:
        SmaltiError: something cannot be used, or the place has something else.
    """
    place = open_place(out)
    with open_input(options.source, options.input_format) as source, batch_progress("Reading") as progress:
        batch = prepare(source, options)
        inputs = {"input": source.path, "model": batch.spec.folder.path}
        with place.opened(inputs) as keeper:
            input_record = source.record()
            if (complete := _complete(place, batch, input_record)) is not None:
                keeper.keep()
                return Outcome(summary=complete, was_complete=True)
            before = load_run(place)
            if before is None:
                check_empty(place)
                record = batch.record(batch.check(progress, on_invalid), input_record)
                place.put(RUN_FILE, record.to_bytes(), "application/json")
            else:
                record = batch.record(before.counts, input_record)
                check_same(place, comparable_run(before), comparable_run(record))
                place.tidy()
                record = before
            keeper.keep()
            finished = finished_shards(place)
            if len(finished) < record.description.shards:
                _draw(place, batch, record, finished, progress)
            progress.show("Writing the manifest")
            with place.scratch() as folder:
                summary = finish(
                    place, record.description, result_parts(place, record.description), folder=folder
                )
            place.remove_work(RUN_FILE)
            return Outcome(summary=summary)


def _complete(place: RunPlace, batch: LocalRun, input_record: InputRecord) -> BatchSummary | None:
    """Returns the summary of a batch that is complete, or None; raises `InvalidInputError` if it is another one."""
    if place.get(SUCCESS_FILE) is None:
        return None
    summary = load_summary(place)
    if summary is None:
        raise InvalidInputError(
            FIELD, f"{place.label} has {SUCCESS_FILE} without {SUMMARY_FILE}; give another place"
        )
    counts = PlanCounts(prompts=0, invalid=0, blank=0, candidates=0, pictures=0)
    wanted = batch.record(counts, input_record)
    check_same(
        place,
        comparable(summary, summary.revisions),
        comparable(wanted.description, (wanted.revision,)),
    )
    check_whole(place, summary)
    place.remove_work(RUN_FILE)
    return summary


def _draw(
    place: RunPlace, batch: LocalRun, record: RunRecord, finished: set[int], progress: BatchProgress
) -> None:
    """Draws the shards that are missing."""
    description = record.description
    layout = BatchLayout()
    begun = load_begun(place, finished)
    drawing: set[int] = set()
    state = batch.input.state()
    done = sum(description.prompts_of(number) for number in finished)
    candidates_each = record.counts.candidates / max(1, description.prompts)

    def check_input() -> None:
        if batch.input.state() != state:
            raise InvalidInputError("input", f"{batch.input.name} was changed while it was drawn")

    def missing() -> Iterator[PlannedShard]:
        first = next(number for number in range(description.shards) if number not in finished)
        for shard in batch.plan.shards(first):
            if shard.number in finished or shard.number in begun:
                continue
            check_input()
            write_begun(place, shard.number, Begun())
            drawing.add(shard.number)
            yield shard

    def write(output: DrawnShard) -> None:
        nonlocal done
        if output.tar is not None:
            tar = layout.tar(ShardRange(number=output.number, count=description.prompts_of(output.number)))
            place.take_file(tar, output.tar, TAR)
        write_part(place, output.number, output.results)
        remove_begun(place, output.number)
        drawing.discard(output.number)
        done += len(output.results)

    with place.scratch() as folder:
        progress.show(f"Loading {batch.spec.folder.name}")
        with batch.load() as pipeline:
            stages = PipelineStages(pipeline, description.picture_format, batch.spec.codebook_size)
            line = Line(stages, folder, write)

            def show() -> None:
                signals.check()
                ahead = line.candidates / candidates_each if candidates_each else 0.0
                progress.update(min(done + ahead, description.prompts), description.prompts)

            show()
            try:
                for number in sorted(begun):
                    shard = next(batch.plan.shards(number))
                    check_input()
                    write(draw_carefully(stages, shard, begun[number], place, folder, show))
                line.run(missing(), show)
            finally:
                # This process has not been lost, whatever has ended the run.
                with suppress(SmaltiError, OSError):
                    remove_begun(place, *drawing)
