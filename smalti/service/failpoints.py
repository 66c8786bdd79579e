"""Places at which a service can be made to fail, for tests of faults: off unless `SMALTI_FAILPOINTS` is set.

`SMALTI_FAILPOINTS` holds failpoints with `;` between them, each of the form

    POINT=ACTION[:SECONDS][@TIMES][?FIELD=TEXT]

    generate.before-write=kill@1            the process kills itself (SIGKILL), the first time
    decode.after-read=raise?prompt=boom     an error, for every prompt that has "boom" in it
    rank.after-write=sleep:3@2              3 seconds' sleep, the first two times
    generate.engine-step=hang?job=j7        never goes on

Points of a stage, in their order: `STAGE.after-read`, `STAGE.engine-step` (in the engine's thread, before it computes;
of the generator, before every quantum and for no work in particular), `STAGE.before-write`, `STAGE.after-write` (before
anything is sent), `STAGE.after-publish` (before the message is acknowledged). Those of the gateway, in the order of a
job: `gateway.after-accept` (stored, and not answered yet), `gateway.after-lease` (a chunk is noted as sent, and is not
yet), `gateway.after-publish`, `gateway.after-ranked` (the scores of a chunk are stored), `gateway.before-result`,
`gateway.after-result` (written, while the job is still open), `gateway.after-end`.

FIELD is `job`, `prompt` or `chunk`; a prompt has to contain the text, the others have to be it.

TIMES counts in one process; over all processes, and so over restarts, where `SMALTI_FAILPOINTS_STATE` names a folder
that they share.
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
    r"(\?(?P<field>job|prompt|chunk)=(?P<text>.+))?"
)


class FailpointError(Exception):
    """What a failpoint raises: as unexpected as any fault."""


class Action(StrEnum):
    """What happens at a failpoint."""

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
    """None is every time."""
    about: str = ""
    """By which of `job`, `prompt` and `chunk` it is told what it is for; empty for all work."""
    text: str = ""
    count: int = 0

    def concerns(self, about: Mapping[str, object]) -> bool:
        """Says whether it is for this work."""
        if not self.about:
            return True
        value = str(about.get(self.about, ""))
        return self.text in value if self.about == "prompt" else self.text == value

    def take(self, state: Path | None) -> bool:
        """Uses up one of its times; returns False when none is left."""
        if self.times is None:
            return True
        if state is None:
            with _lock:
                self.count += 1
                return self.count <= self.times
        state.mkdir(parents=True, exist_ok=True)
        for number in range(self.times):
            try:
                # Whoever makes the file has the turn, whatever other processes do meanwhile.
                self.mark(state, number).touch(exist_ok=False)
            except FileExistsError:
                continue
            return True
        return False

    def mark(self, state: Path, number: int = 0) -> Path:
        """Returns the file that is there once it has failed `number` + 1 times; each failpoint has its own."""
        text = f"{self.action}:{self.seconds:g}?{self.about}={self.text}"
        return state / f"{self.point}-{hashlib.sha256(text.encode()).hexdigest()[:8]}-{number}"

    def act(self) -> None:
        """Fails."""
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
    """Reads the variables; to be called once, when the process starts.

    Raises:
        InvalidInputError: a failpoint has not that form.
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
    """Reads one failpoint; raises `InvalidInputError` when it has another form."""
    match = _FORM.fullmatch(text)
    if match is None or match["action"] not in list(Action):
        raise InvalidInputError(VARIABLE, f"{text!r} is not POINT=ACTION[:SECONDS][@TIMES][?FIELD=TEXT]")
    return Failpoint(
        point=match["point"],
        action=Action(match["action"]),
        seconds=float(match["seconds"] or 0),
        times=None if match["times"] is None else int(match["times"]),
        about=match["field"] or "",
        text=match["text"] or "",
    )


def is_armed(point: str) -> bool:
    """Says whether anything is to fail at a point."""
    return point in _armed


def reach(point: str, **about: object) -> None:
    """Fails, if something is to fail here.

    Args:
        point: where the process is.
        about: the job, prompt and chunk that are being worked on.
    """
    for failpoint in _armed.get(point, ()):
        if failpoint.concerns(about) and failpoint.take(_state):
            failpoint.act()
