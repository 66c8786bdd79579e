"""A phase of a proof: something that happens to a deployed system while it draws, and the account of it."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from faults.accounting import Account, Submission
from faults.deployed.load import CANDIDATES, PROMPTS, Load
from faults.deployed.models import Expected
from faults.deployed.system import DeployedSystem
from faults.running import describe
from faults.tally import Tally
from smalti.errors import InvalidInputError

READY_SECONDS: Final = 900.0
"""Time in which everything must be ready again, on a busy machine."""
FIRST, NEXT = "first", "next"
PICTURES: Final = 9
"""What somebody at the front door asks for."""

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Trial:
    """The run of a phase."""

    system: DeployedSystem
    account: Account
    folder: Path
    next_tag: str = ""
    """Tag of the images of the next version of the code; empty for the same."""
    problems: list[str] = field(default_factory=list)
    """Expectations that were not met."""
    notes: list[str] = field(default_factory=list)
    """Observations for the report."""
    batches: list[str] = field(default_factory=list)
    """Ids of batches, whose shards the account of the jobs leaves out."""

    def expect(self, condition: bool, problem: str) -> None:
        """Records a problem unless the condition holds."""
        if not condition:
            self.problems.append(problem)

    def draw_by_http(self, **limit: float) -> list[bytes]:
        """Draws nine pictures through the front door; `limit` may have the `seconds` after which nobody asks again."""
        pictures = self.system.draw_by_http(PROMPTS[0], PICTURES, **limit)
        self.expect(len(pictures) == PICTURES, f"{len(pictures)} pictures came")
        return pictures

    def draw_and_keep(self) -> None:
        """Draws nine pictures through the front door, notes how long it took, and keeps them."""
        began = time.monotonic()
        pictures = self.draw_by_http()
        self.notes.append(f"nine pictures by HTTP after {time.monotonic() - began:.1f} s")
        for number, content in enumerate(pictures):
            (self.folder / f"picture-{number}.png").write_bytes(content)

    def note_load(self, load: Load) -> None:
        """Notes what a load has done."""
        self.notes.append(f"{load.ended} jobs ended under load, the slowest after {load.slowest:.0f} s")


AnyTrial = TypeVar("AnyTrial", bound=Trial)


@dataclass(frozen=True)
class Phase(Generic[AnyTrial]):
    """Something that happens to the system while it draws."""

    name: str
    what: str
    guarantee: str
    run: Callable[[AnyTrial], None]


@dataclass(frozen=True)
class PhaseResult:
    """The result of a phase."""

    phase: Phase[Any]
    tally: Tally
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether all expectations were met, and no job was lost, wrong, unexplained, refused or failed."""
        tally = self.tally
        bad = sum(tally.states[name] for name in ("lost", "failed", "refused", "expired", "cancelled"))
        return not (self.problems or bad or tally.unexpected or tally.wrong)


class Accounts:
    """The accounts of the phases of one system, one after another."""

    def __init__(self, system: DeployedSystem, references: Mapping[str, Expected], say: Say) -> None:
        """Starts without any.

        Args:
            system: the system.
            references: draw the expected pictures, by the revision of the model.
            say: called with each line of progress.
        """
        self._system = system
        self._references = references
        self._say = say
        self._known: dict[str, Submission] = {}
        self._batches: set[str] = set()

    def run(self, phase: Phase[AnyTrial], trial_of: Callable[[Account], AnyTrial]) -> PhaseResult:
        """Runs a phase, and accounts for every job of it; what it raises becomes a problem.

        Args:
            phase: the phase.
            trial_of: makes its trial with an account.
        """
        self._say(f"{phase.name}: {phase.what}")
        began = time.monotonic()
        others: set[str] = set()

        def is_other(job: str) -> bool:
            return job in others or job.startswith(tuple(self._batches))

        account = Account(self._system, self._references, self._known, is_other=is_other)
        trial = trial_of(account)
        tally = Tally()
        try:
            phase.run(trial)
        except Exception as error:
            trial.problems.append(describe(error))
        self._batches |= {f"{each}-" for each in trial.batches}
        try:
            others |= self._without_account(account)
            account.settle(seconds=READY_SECONDS)
            tally = account.close()
        except Exception as error:
            trial.problems.append(describe(error))
            tally.states = Counter(each.state for each in account.submissions)
        problems, notes = tuple(trial.problems), tuple(trial.notes)
        result = PhaseResult(phase, tally, problems, notes, time.monotonic() - began)
        verdict = "holds" if result.passed else "FAILS"
        self._say(f"{phase.name}: {verdict} after {result.seconds:.0f} s, {dict(tally.states)}")
        for line in (*problems, *tally.unexpected[:5], *tally.wrong[:5], *notes, *tally.reasons):
            self._say(f"    {line}")
        return result

    def _without_account(self, account: Account) -> set[str]:
        """Returns jobs that came another way, such as the HTTP API; all of them are known from now on."""
        mine = {each.request_id for each in account.submissions}
        found = set()
        with self._system.client(attempts=4, retry_seconds=60) as client:
            for job in client.list():
                if job.id not in self._known and job.request_id not in mine:
                    self._known[job.id] = Submission("", 0, CANDIDATES, job.request_id, {}, job=job.id)
                if job.id in self._known and not self._known[job.id].prompt:
                    found.add(job.id)
        return found


def phase(name: str, what: str, guarantee: str) -> Callable[[Callable[[AnyTrial], None]], Phase[AnyTrial]]:
    """Turns a function into a phase."""
    return lambda run: Phase(name, what, guarantee, run)


def choose(phases: Mapping[str, Phase[AnyTrial]], names: str) -> list[Phase[AnyTrial]]:
    """Returns phases by name, in their order; all without names.

    Args:
        phases: all phases, by their names.
        names: the wanted ones, with commas between them.

    Raises:
        InvalidInputError: a name is unknown.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in phases:
            raise InvalidInputError("--phases", f"{name!r} must be one of {', '.join(phases)}")
    return [phase for name, phase in phases.items() if name in wanted or not wanted]
