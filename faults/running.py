"""Runs rows of the fault matrix, starting the systems that they need."""

import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from faults.accounting import Account, Submission
from faults.batches import BatchAccount, BatchSubmission
from faults.layout import FIRST, NEXT, Layout
from faults.matrix import Result, Row, Trial
from faults.reference import Reference
from faults.system import System
from faults.tally import Tally
from harness.waiting import wait_until
from smalti.registry.folder import ModelFolder
from smalti.testing.model import tiny_model

LEFT_OVER_SECONDS = 30.0


class Runner:
    """Runs rows on one kind of system; a failing row does not stop the others."""

    def __init__(
        self,
        folder: Path,
        *,
        broker: str = "valkey",
        database: str = "sqlite",
        gateways: int = 1,
        jobs: int = 24,
        burst: int = 10_000,
        long: bool = True,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Creates the tiny model.

        Args:
            folder: the folder for all data and logs.
            broker: `valkey` or `rabbitmq`.
            database: `sqlite` or `postgres`.
            gateways: the number of gateways; more than one need PostgreSQL.
            jobs: the number of jobs of a load.
            burst: the number of jobs that are submitted at once.
            long: whether slow parts of rows run too.
            say: called with each line of progress.
        """
        self._folder = folder
        self._broker = broker
        self._database = database
        self._gateways = gateways
        self._jobs = jobs
        self._burst = burst
        self._long = long
        self._say = say
        self._models: dict[str, ModelFolder] = {}
        self._references: dict[str, Reference] = {}
        self._add(FIRST, 1)

    def run(self, rows: Sequence[Row]) -> list[Result]:
        """Runs the rows that concern this kind of system; those with the same settings share one."""
        rows = [row for row in rows if row.concerns(self._broker, self._database, self._gateways)]
        together: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in rows:
            if not row.alone:
                together.setdefault(tuple(sorted(row.settings.items())), []).append(row)
        groups = [*together.values(), *([row] for row in rows if row.alone)]
        results = [result for group in groups for result in self._run_in(group)]
        order = {row.name: place for place, row in enumerate(rows)}
        return sorted(results, key=lambda result: order[result.row.name])

    def close(self) -> None:
        """Closes the reference engines."""
        for reference in self._references.values():
            reference.close()

    def _add(self, name: str, seed: int) -> None:
        """Adds a revision of the model, unless it is there."""
        if name not in self._models:
            path = self._folder / name / "model"
            made = path.exists()
            model = (
                ModelFolder.open(path)
                if made
                else tiny_model(path, seed=seed, pictures_seed=1, with_refiner=True)
            )
            self._models[name] = model
            self._references[model.revision] = Reference.load(model)

    def _run_in(self, rows: Sequence[Row]) -> list[Result]:
        """Runs rows in one system."""
        folder = self._folder / f"{self._broker}-{self._database}-{self._gateways}-{rows[0].name}"
        folder.mkdir(parents=True)
        prepared = rows[0].prepare(folder) if rows[0].prepare else {}
        layout = Layout(
            broker=self._broker,
            database=self._database,
            gateways=self._gateways,
            services=rows[0].services,
            held=rows[0].held,
            modules=rows[0].modules,
            models=rows[0].models,
            releases=rows[0].releases,
            settings={**rows[0].settings, **prepared},
            failpoints=tuple(failpoint for row in rows for failpoint in row.failpoints),
        )
        if NEXT in layout.models.values():
            self._add(NEXT, 2)
        system = System(layout, self._models, folder)
        known: dict[str, Submission] = {}
        known_batches: dict[str, BatchSubmission] = {}
        began = time.monotonic()
        results = []
        with system:
            self._say(f"a system is ready after {time.monotonic() - began:.0f} s: {folder}")
            for row in rows:
                results.append(self._run_one(row, system, known, known_batches))
        # A server that was killed, since the machine is busy, ends a moment later than what has started it.
        with suppress(AssertionError):
            wait_until(lambda: not system.left_over(), LEFT_OVER_SECONDS)
        if left_over := system.left_over():
            last = results[-1]
            problems = (*last.problems, *(f"still runs: {command}" for command in left_over))
            results[-1] = Result(last.row, last.tally, problems, last.notes, last.seconds)
        return results

    def _run_one(
        self,
        row: Row,
        system: System,
        known: dict[str, Submission],
        known_batches: dict[str, BatchSubmission],
    ) -> Result:
        self._say(f"row {row.name}: {row.fault}")
        began = time.monotonic()
        batches = BatchAccount(system, self._references, known_batches)
        account = Account(system, self._references, known, is_other=batches.explains)
        trial = Trial(system, account, batches, self._jobs, self._long, self._burst)
        tally = Tally()
        try:
            row.run(trial)
        except Exception as error:
            trial.problems.append(describe(error))
        try:
            system.wait_until_serving()
            tally = account.close()
            tally.add(batches.close())
        except Exception as error:
            trial.problems.append(describe(error))
            tally.states = Counter(each.state for each in account.submissions)
            tally.states.update(each.state for each in batches.submissions)
        notes = (*trial.notes, *tally.notes)
        result = Result(row, tally, tuple(trial.problems), notes, time.monotonic() - began)
        self._say(f"row {row.name}: {'holds' if result.passed else 'FAILS'} after {result.seconds:.0f} s")
        for problem in (*result.problems, *tally.unexpected[:5], *tally.wrong[:5]):
            self._say(f"    {problem}")
        return result


def describe(error: Exception) -> str:
    """Returns an error and its place in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__} in {place.name}, {Path(place.filename).name}:{place.lineno}: {text}"
