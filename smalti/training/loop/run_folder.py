"""The folder of a run: its settings, checkpoints, log and sample sheets.

settings.toml    copy of the settings file
data.json        digest of the data
checkpoints/     the newest states, from which the run can be resumed (orbax)
best/            the weights with the smallest held-out loss, or the newest of an adversarial run (orbax)
metrics.jsonl    every logged number
tensorboard/     the same numbers for TensorBoard
sheets/          sample sheets by step
damaged/         checkpoints that could not be read
"""

import json
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import jax

from smalti.errors import InvalidInputError, SmaltiWarning
from smalti.files import write_atomically
from smalti.outputs import Inputs, OpenFolder, open_folder
from smalti.training.loop.checkpoints import Checkpoints
from smalti.training.loop.data_digest import data_digest
from smalti.training.loop.log import METRICS_FILE, append_record, cut_log
from smalti.training.loop.settings import RunSettings, Settings, load_settings

SETTINGS_FILE: Final = "settings.toml"
DATA_FILE: Final = "data.json"
_OF_TRAINERS: Final = (
    "credits.md", "network.json", "text", "tokens", "vqgan", "words.json", "world.json",
)  # fmt: skip
"""What trainers add to the folder; see their `prepare`."""
_PARTS: Final = (
    SETTINGS_FILE, DATA_FILE, METRICS_FILE, "best", "checkpoints", "sheets", "tensorboard", *_OF_TRAINERS,
)  # fmt: skip
_KEPT: Final = 2


class RunFolder:
    """The folder of a run, open for training; no other process can open it meanwhile.

    If a `with` block fails before `keep` is called, what the run has added to the folder is removed.
    """

    def __init__(self, path: Path, opened: OpenFolder, stack: ExitStack) -> None:
        """Takes over a folder that is open; `create` and `resume` open it."""
        self.path = path
        self.sheets = path / "sheets"
        self.tensorboard = path / "tensorboard"
        self._opened = opened
        self._newest = Checkpoints(path / "checkpoints", kept=_KEPT)
        stack.callback(self._newest.close)
        self._best = Checkpoints.best(path / "best")
        stack.callback(self._best.close)
        self._stack = stack.pop_all()

    @classmethod
    def create(cls, path: Path, settings_file: Path, inputs: Inputs = {}) -> Self:  # noqa: B006
        """Makes the folder of a new run.

        Args:
            path: the folder.
            settings_file: the settings, which are copied.
            inputs: what the run reads, from which the folder must be apart.

        Raises:
            InvalidInputError: the folder already holds a run, or cannot be used.
            SmaltiError: a file cannot be read or written.
        """
        if (path / SETTINGS_FILE).exists():
            raise InvalidInputError(
                "out", f"{path} already holds a run; continue it with --resume, or give another folder"
            )
        with ExitStack() as stack:
            opened = stack.enter_context(
                open_folder(path, inputs=inputs, may_hold_inputs=False, undone=_PARTS)
            )
            (path / "sheets").mkdir(exist_ok=True)
            write_atomically(path / SETTINGS_FILE, settings_file.read_bytes())
            return cls(path, opened, stack)

    @classmethod
    def resume(cls, path: Path, settings: RunSettings) -> Self:
        """Opens the folder of a run to continue it.

        Raises:
            InvalidInputError: the folder holds no run, the run was started with other settings, or another process
                trains in it.
        """
        theirs = load_settings(_settings_file(path), type(settings)).model_dump()
        for name, value in settings.model_dump().items():
            if theirs[name] != value:
                raise InvalidInputError(
                    name,
                    f"the run in {path} was started with {theirs[name]!r}; a resumed run must keep it, not {value!r}",
                )
        with ExitStack() as stack:
            return cls(path, stack.enter_context(open_folder(path)), stack)

    def remember_data(self, data: Path) -> None:
        """Keeps a digest of the data of a new run; checks that a resumed one still has the same data.

        Raises:
            InvalidInputError: the data has changed since the run began.
        """
        file, digest = self.path / DATA_FILE, data_digest(data)
        if not file.is_file():
            write_atomically(file, json.dumps({"digest": digest}) + "\n")
            return
        try:
            before = json.loads(file.read_bytes())["digest"]
        except (ValueError, KeyError, TypeError, RecursionError):
            warnings.warn(f"{file} is damaged; the data is not compared", SmaltiWarning, stacklevel=2)
            return
        if before != digest:
            raise InvalidInputError(
                "data",
                f"{data} is not the data that the run in {self.path} began with, or has changed since; give that data, "
                "or start a new run",
            )

    def keep(self) -> None:
        """Keeps the folder from now on, even if the block fails."""
        self._opened.keep()

    @property
    def newest_step(self) -> int | None:
        """Step of the newest checkpoint; None before the first one."""
        return self._newest.newest_step

    @property
    def best_value(self) -> float:
        """Value of the best weights so far, the smallest; infinite before the first evaluation."""
        return self._best.smallest_loss()

    def restore(self, like: Any) -> Any:
        """Returns the newest state that can be read, with the types and devices of `like`; `newest_step` is its step.

        Warns if a checkpoint is damaged and an older one is used.

        Raises:
            CheckpointError: every checkpoint is damaged, or the newest belongs to another model.
        """
        return self._newest.restore(like, older=True)

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint, then deletes the oldest one.

        Raises:
            SmaltiError: the disk is full or cannot be written; earlier checkpoints stay intact.
        """
        self._newest.save(step, state)

    def save_best(self, step: int, weights: Any, value: float) -> None:
        """Writes weights with a smaller value than all before, usually the held-out loss; raises what `save` raises."""
        self._best.save(step, weights, {"loss": value})

    def append(self, record: Mapping[str, float]) -> None:
        """Appends a record to the log."""
        append_record(self.path / METRICS_FILE, record)

    def cut_log(self, step: int) -> None:
        """Removes later steps from the log: a run that was killed continues from its newest checkpoint."""
        log = self.path / METRICS_FILE
        if damaged := cut_log(log, step):
            lines = "a damaged line was" if damaged == 1 else f"{damaged} damaged lines were"
            warnings.warn(f"{log}: {lines} removed", SmaltiWarning, stacklevel=2)

    def close(self) -> None:
        """Closes the folder, and lets other processes open it."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


def load_best(path: Path, like: Any) -> Any:
    """Loads the weights with the smallest held-out loss of a run.

    Args:
        path: folder of the run.
        like: shapes of the weights, as `jax.eval_shape` returns them.

    Raises:
        InvalidInputError: the folder holds no run, or the run has not been evaluated yet.
        CheckpointError: the checkpoint is damaged, or belongs to another model.
    """
    _settings_file(path)
    if not (path / "best").is_dir():
        raise InvalidInputError("run", f"{path} has no evaluated checkpoint yet; train it for longer")
    best = Checkpoints.best(path / "best")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
    try:
        if best.newest_step is None:
            raise InvalidInputError("run", f"{path} has no evaluated checkpoint yet; train it for longer")
        return best.restore(like)
    finally:
        best.close()


def load_run_settings(path: Path, kind: type[Settings]) -> Settings:
    """Loads the settings of a run.

    Raises:
        InvalidInputError: the folder holds no run, or the run of another trainer.
    """
    return load_settings(_settings_file(path), kind)


def _settings_file(path: Path) -> Path:
    file = path / SETTINGS_FILE
    if not file.is_file():
        raise InvalidInputError("run", f"{path} holds no run: {SETTINGS_FILE} is missing")
    return file
