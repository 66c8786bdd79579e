"""The folder of a run: its settings, checkpoints, log and sample sheets.

settings.toml    copy of the settings file
checkpoints/     the newest states, from which the run can be resumed (orbax)
best/            the weights with the smallest held-out loss, or the newest of an adversarial run (orbax)
metrics.jsonl    every logged number
tensorboard/     the same numbers for TensorBoard
sheets/          sample sheets by step
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from smalti.errors import CheckpointError, InvalidInputError, SmaltiError
from smalti.files import write_atomically
from smalti.training.loop.settings import RunSettings, Settings, load_settings

SETTINGS_FILE = "settings.toml"
METRICS_FILE = "metrics.jsonl"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_KEPT = 2


class RunFolder:
    """The folder of a run, open for training; no other process can open it meanwhile."""

    def __init__(self, path: Path) -> None:
        """Opens a folder that exists; raises `InvalidInputError` if another process trains in it."""
        self.path = path
        self._lock = _locked(path)
        self.sheets = path / "sheets"
        self.tensorboard = path / "tensorboard"
        self._newest = _manager(path / "checkpoints", _KEPT)
        self._best = _best_manager(path / "best")

    @classmethod
    def create(cls, path: Path, settings_file: Path) -> "RunFolder":
        """Makes the folder of a new run.

        Raises:
            InvalidInputError: the folder already holds a run, or cannot be written.
        """
        if (path / SETTINGS_FILE).exists():
            raise InvalidInputError(
                "out", f"{path} already holds a run; continue it with --resume, or give another folder"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "sheets").mkdir(exist_ok=True)
            write_atomically(path / SETTINGS_FILE, settings_file.read_bytes())
        except OSError as error:
            raise InvalidInputError(
                "out", f"{path}: the folder cannot be written ({error.strerror})"
            ) from None
        return cls(path)

    @classmethod
    def resume(cls, path: Path, settings: RunSettings) -> "RunFolder":
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
        return cls(path)

    @property
    def newest_step(self) -> int | None:
        """Step of the newest checkpoint; None before the first one."""
        return self._newest.latest_step()

    @property
    def best_value(self) -> float:
        """Value of the best weights so far, the smallest; infinite before the first evaluation."""
        step = self._best.latest_step()
        return float("inf") if step is None else float(self._best.metrics(step)["loss"])

    def restore(self, like: Any) -> Any:
        """Returns the newest state, with the types and devices of `like`.

        Raises:
            CheckpointError: the checkpoint is damaged, or belongs to another model.
        """
        step = self.newest_step
        return _restore(self._newest, step, like, self.path / "checkpoints")

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint, then deletes the oldest one.

        Raises:
            SmaltiError: the disk is full or cannot be written; earlier checkpoints stay intact.
        """
        self._save(self._newest, step, state, None)

    def save_best(self, step: int, weights: Any, value: float) -> None:
        """Writes weights with a smaller value than all before, usually the held-out loss; raises what `save` raises."""
        self._save(self._best, step, weights, {"loss": value})

    def append(self, record: Mapping[str, float]) -> None:
        """Appends a line to the log."""
        with (self.path / METRICS_FILE).open("a") as log:
            log.write(json.dumps(record) + "\n")

    def cut_log(self, step: int) -> None:
        """Removes later steps from the log: a run that was killed continues from its newest checkpoint."""
        log = self.path / METRICS_FILE
        if log.exists():
            kept = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
            write_atomically(log, "".join(f"{line}\n" for line in kept))

    def close(self) -> None:
        """Closes the checkpoint managers, and lets other processes open the folder."""
        self._newest.close()
        self._best.close()
        os.close(self._lock)

    def _save(
        self, manager: ocp.CheckpointManager, step: int, tree: Any, metrics: dict[str, float] | None
    ) -> None:
        try:
            manager.save(step, args=ocp.args.StandardSave(tree), metrics=metrics, force=True)
        except Exception as error:  # orbax passes on errors of the file system and of tensorstore.
            # A partial checkpoint has another name and only takes up space.
            for partial in Path(manager.directory).glob(f"{step}.*"):
                shutil.rmtree(partial, ignore_errors=True)
            raise SmaltiError(
                f"{manager.directory}: the checkpoint of step {step} cannot be written ({_reason(error)}); "
                f"the newest one is that of step {manager.latest_step()}"
            ) from error


@contextmanager
def undone_on_failure(path: Path) -> Iterator[None]:
    """Removes what the block has added to a folder if the block raises, so that no useless run stays behind."""
    before = set(path.iterdir()) if path.is_dir() else None
    try:
        yield
    except BaseException:
        if before is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            for added in set(path.iterdir()) - before:
                if added.is_dir():
                    shutil.rmtree(added, ignore_errors=True)
                else:
                    added.unlink(missing_ok=True)
        raise


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
    manager = _best_manager(path / "best")
    step = manager.latest_step()
    if step is None:
        raise InvalidInputError("run", f"{path} has no evaluated checkpoint yet; train it for longer")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like)
    try:
        return _restore(manager, step, like, path / "best")
    finally:
        manager.close()


def load_run_settings(path: Path, kind: type[Settings]) -> Settings:
    """Loads the settings of a run.

    Raises:
        InvalidInputError: the folder holds no run, or the run of another trainer.
    """
    return load_settings(_settings_file(path), kind)


def _locked(folder: Path) -> int:
    """Locks a folder; returns the descriptor that holds the lock until it is closed, also by the end of the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InvalidInputError(
            "out", f"another process trains in {folder}; wait for its end, or give another folder"
        ) from None
    return descriptor


def _settings_file(path: Path) -> Path:
    file = path / SETTINGS_FILE
    if not file.is_file():
        raise InvalidInputError("run", f"{path} holds no run: {SETTINGS_FILE} is missing")
    return file


def _best_manager(folder: Path) -> ocp.CheckpointManager:
    return _manager(folder, 1, best_fn=itemgetter("loss"), best_mode="min")


def _manager(folder: Path, kept: int, **options: Any) -> ocp.CheckpointManager:
    # Synchronous, so that an error appears at its own step and an existing checkpoint is always complete.
    chosen = ocp.CheckpointManagerOptions(
        max_to_keep=kept, create=True, enable_async_checkpointing=False, **options
    )
    # The explicit handler makes `item_metadata` work, which `_restore` calls.
    handler = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(folder.resolve(), item_handlers=handler, options=chosen)


def _restore(manager: ocp.CheckpointManager, step: int | None, like: Any, folder: Path) -> Any:
    try:
        different = _different(manager.item_metadata(step).tree, like)
    except Exception:  # The checkpoint is damaged; restoring it says how.
        different = None
    if different is not None:
        raise CheckpointError(f"{folder}: the checkpoint belongs to another model: {different}")
    try:
        restored = manager.restore(step, args=ocp.args.StandardRestore(like))
    except Exception as error:  # orbax raises ValueError, KeyError and others for a tree that does not match.
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: the checkpoint is damaged or belongs to another model ({reason})"
        ) from error
    return restored


def _different(stored: Any, like: Any) -> str | None:
    """Names the first array of a checkpoint with another shape; orbax itself would fail halfway through reading."""
    shapes = {path: tuple(leaf.shape) for path, leaf in _arrays(stored)}
    for path, leaf in _arrays(like):
        if shapes.get(path, leaf.shape) != tuple(leaf.shape):
            return f"{path} has the shape {shapes[path]}, not {tuple(leaf.shape)}"
    return None


def _arrays(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yields the arrays of a tree with their paths; a named tuple has the paths of the mapping that is stored."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if hasattr(leaf, "shape"):
            yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return "the disk is full"
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    return "the disk is full" if "No space left" in text or "File too large" in text else text[:200]
