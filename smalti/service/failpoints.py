"""Points at which a service can be made to fail, for fault tests; off unless `SMALTI_FAILPOINTS` is set.

`SMALTI_FAILPOINTS` contains failpoints, separated by `;`, each of the form

    POINT=ACTION[:SECONDS][@TIMES][?FIELD=TEXT]

    generate.before-write=kill@1            the process kills itself (SIGKILL) the first time
    decode.after-read=raise?prompt=boom     raises an error for every prompt that contains "boom"
    rank.after-write=sleep:3@2              sleeps for 3 seconds the first two times
    generate.engine-step=hang?job=j7        hangs forever

The points of a stage, in order: `STAGE.after-read`, `STAGE.engine-step` (in the engine's thread before it computes; in
the generator before every dispatch, for no task in particular), `generate.engine-request` (before a dispatch, for each
seed that it generates with), `STAGE.before-write`, `STAGE.after-write` (before any message is sent),
`STAGE.after-publish` (before the message is acknowledged). Those of shards begin with `STAGE.shard-`, such as
`decode.shard-after-read`; `STAGE.shard-engine-step` is reached for each prompt of the shard, with that prompt. The last
stage puts its output into its place after `STAGE.shard-after-write`.

The points of the gateway, in the order of a job: `gateway.after-accept` (stored, not yet answered),
`gateway.after-lease` (a chunk is marked as sent, but is not yet), `gateway.after-publish`, `gateway.after-ranked` (the
scores of a chunk are stored), `gateway.before-result`, `gateway.after-result` (written while the job is still open),
`gateway.after-end`. In the order of a batch: `gateway.after-batch` (stored, not yet answered), `gateway.after-checked`
(the whole input is read), `gateway.before-shards` and `gateway.after-shards` (before and after some shards are stored),
`gateway.after-planned`, `gateway.after-shard-lease`, `gateway.after-shard-publish`, `gateway.after-shard-done` (the
results of a shard count), `gateway.after-halved`, `gateway.before-manifest`, `gateway.after-manifest` (everything is
written while the batch is still open). A migration of the gateway's database reaches `gateway.before-migrated` before
each commit, with the schema that it makes as its `job`.

FIELD is `job`, `prompt`, `chunk`, `seed`, `shard` (the name of its files, as in 00012) or `batch` (its name). A prompt
must contain TEXT, the others must be equal to it.

TIMES counts in one process. If `SMALTI_FAILPOINTS_STATE` names a folder, it counts over all processes that share the
folder, and so over restarts.
"""

import hashlib
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from smalti.errors import InvalidInputError

VARIABLE = "SMALTI_FAILPOINTS"
STATE_VARIABLE = "SMALTI_FAILPOINTS_STATE"

_FORM = re.compile(
    r"(?P<point>[a-z-]+\.[a-z-]+)=(?P<action>[a-z]+)(:(?P<seconds>[0-9.]+))?(@(?P<times>\d+))?"
    r"(\?(?P<field>job|prompt|chunk|seed|shard|batch)=(?P<text>.+))?"
)


class FailpointError(Exception):
    """The error that a failpoint raises; handled like any unexpected error."""


class Action(StrEnum):
    """The action of a failpoint."""

    KILL = "kill"
    RAISE = "raise"
    SLEEP = "sleep"
    HANG = "hang"


@dataclass
class Failpoint:
    """One failpoint."""

    point: str
    action: Action
    seconds: float = 0.0
    times: int | None = None
    """Number of times that the failpoint acts; None for every time."""
    about: str = ""
    """The field that selects tasks, such as `job`; empty for all tasks."""
    text: str = ""
    count: int = 0

    def concerns(self, about: Mapping[str, object]) -> bool:
        """Returns whether the failpoint selects this task."""
        if not self.about:
            return True
        value = str(about.get(self.about, ""))
        return self.text in value if self.about == "prompt" else self.text == value

    def take(self, state: Path | None) -> bool:
        """Uses up one of the times; returns False if none is left."""
        if self.times is None:
            return True
        if state is None:
            with _lock:
                self.count += 1
                return self.count <= self.times
        state.mkdir(parents=True, exist_ok=True)
        for number in range(self.times):
            try:
                # Creating the file is atomic, so only one process gets this turn.
                self.mark(state, number).touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False

    def mark(self, state: Path, number: int = 0) -> Path:
        """Returns the file that exists once the failpoint has acted `number` + 1 times."""
        text = f"{self.action}:{self.seconds:g}?{self.about}={self.text}"
        return state / f"{self.point}-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{number}"

    def act(self) -> None:
        """Performs the action."""
        if self.action is Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action is Action.RAISE:
            raise FailpointError(self.point)
        if self.action is Action.HANG:
            threading.Event().wait()
        time.sleep(self.seconds)


_armed: dict[str, list[Failpoint]] = {}
_state: Path | None = None
_lock = threading.Lock()


def arm() -> None:
    """Reads the variables; call it once, when the process starts.

    Raises:
        InvalidInputError: a failpoint is malformed.
    """
    global _state
    _armed.clear()
    folder = os.environ.get(STATE_VARIABLE)
    _state = Path(folder) if folder else None
    for text in os.environ.get(VARIABLE, "").split(";"):
        if text.strip():
            failpoint = parse(text.strip())
            _armed.setdefault(failpoint.point, []).append(failpoint)


def parse(text: str) -> Failpoint:
    """Parses one failpoint; raises `InvalidInputError` if it is malformed."""
    match = _FORM.fullmatch(text)
    if match is None or match["action"] not in list(Action):
        raise InvalidInputError(
            VARIABLE, f"{text!r} must have the form POINT=ACTION[:SECONDS][@TIMES][?FIELD=TEXT]"
        )
    return Failpoint(
        point=match["point"],
        action=Action(match["action"]),
        seconds=float(match["seconds"] or 0),
        times=None if match["times"] is None else int(match["times"]),
        about=match["field"] or "",
        text=match["text"] or "",
    )


def is_armed(point: str) -> bool:
    """Returns whether a failpoint is set at this point."""
    return point in _armed


def reach(point: str, **about: object) -> None:
    """Performs the failpoints that are set at this point.

    Args:
        point: the name of the point.
        about: the job, prompt and chunk of the task, or the seed of a request.
    """
    for failpoint in _armed.get(point, ()):
        if failpoint.concerns(about) and failpoint.take(_state):
            failpoint.act()
