"""The folder of a run: its settings, its checkpoints, its log and its sheets.

settings.toml    the settings, as they were given
checkpoints/     the newest states, to go on from (orbax)
best/            the weights with the smallest held-out loss (orbax)
metrics.jsonl    every number that was logged
tensorboard/     the same for TensorBoard
sheets/          sample sheets by step
"""

import errno
import json
import shutil
from collections.abc import Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from smalti.errors import CheckpointError, InvalidInputError, SmaltiError
from smalti.files import write_atomically
from smalti.training.loop.settings import RunSettings, Settings, read_settings

SETTINGS_FILE = "settings.toml"
METRICS_FILE = "metrics.jsonl"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_KEPT = 2


class RunFolder:
    """A run's folder, open for training."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sheets = path / "sheets"
        self.tensorboard = path / "tensorboard"
        self._newest = _manager(path / "checkpoints", _KEPT)
        self._best = _best_manager(path / "best")

    @classmethod
    def create(cls, path: Path, settings_file: Path) -> "RunFolder":
        """Makes the folder of a new run.

        Raises:
            InvalidInputError: there is a run in it already, or it cannot be made.
        """
        if (path / SETTINGS_FILE).exists():
            raise InvalidInputError(
                "out", f"{path} holds a run already; go on with --resume, or give another folder"
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
        """Opens the folder of a run to go on with it.

        Raises:
            InvalidInputError: there is no run in it, or it was started with other settings.
        """
        theirs = read_settings(_settings_file(path), type(settings)).model_dump()
        for name, value in settings.model_dump().items():
            if theirs[name] != value:
                raise InvalidInputError(
                    name,
                    f"the run in {path} was started with {theirs[name]!r}, not {value!r}; a run keeps its settings",
                )
        return cls(path)

    @property
    def newest_step(self) -> int | None:
        """The step of the newest checkpoint; None before the first."""
        return self._newest.latest_step()

    @property
    def best_loss(self) -> float:
        """The smallest held-out loss so far; infinite before the first evaluation."""
        step = self._best.latest_step()
        return float("inf") if step is None else float(self._best.metrics(step)["loss"])

    def restore(self, like: Any) -> Any:
        """Returns the newest state, in the types and on the devices of the state given.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another model.
        """
        step = self.newest_step
        return _restore(self._newest, step, like, self.path / "checkpoints")

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint, and then takes the oldest one away.

        Raises:
            SmaltiError: the disk is full or cannot be written; earlier checkpoints are intact.
        """
        self._save(self._newest, step, state, None)

    def save_best(self, step: int, weights: Any, loss: float) -> None:
        """Writes the weights of the smallest held-out loss; raises as `save`."""
        self._save(self._best, step, weights, {"loss": loss})

    def append(self, record: Mapping[str, float]) -> None:
        """Adds a line to the log."""
        with (self.path / METRICS_FILE).open("a") as log:
            log.write(json.dumps(record) + "\n")

    def cut_log(self, step: int) -> None:
        """Takes out of the log what comes after a step: a run that was killed goes on from its last checkpoint."""
        log = self.path / METRICS_FILE
        if log.exists():
            kept = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
            write_atomically(log, "".join(f"{line}\n" for line in kept))

    def close(self) -> None:
        """Lets go of the checkpoints."""
        self._newest.close()
        self._best.close()

    def _save(
        self, manager: ocp.CheckpointManager, step: int, tree: Any, metrics: dict[str, float] | None
    ) -> None:
        try:
            manager.save(step, args=ocp.args.StandardSave(tree), metrics=metrics, force=True)
        except Exception as error:  # orbax raises what the file system or tensorstore does.
            # What was written in part has another name and would only take room.
            for partial in Path(manager.directory).glob(f"{step}.*"):
                shutil.rmtree(partial, ignore_errors=True)
            raise SmaltiError(
                f"{manager.directory}: the checkpoint of step {step} cannot be written ({_reason(error)}); "
                f"the last one is of step {manager.latest_step()}"
            ) from error


def read_best(path: Path, like: Any) -> Any:
    """Returns the weights with the smallest held-out loss of a run.

    Args:
        path: the run's folder.
        like: the weights' shapes, as `jax.eval_shape` gives them.

    Raises:
        InvalidInputError: there is no run, or it has not been evaluated yet.
        CheckpointError: the checkpoint is damaged, or of another model.
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


def read_run_settings(path: Path, kind: type[Settings]) -> Settings:
    """Returns the settings of a run; raises `InvalidInputError` when there is no run, or one of another kind."""
    return read_settings(_settings_file(path), kind)


def _settings_file(path: Path) -> Path:
    file = path / SETTINGS_FILE
    if not file.is_file():
        raise InvalidInputError("run", f"{path} holds no run: it has no {SETTINGS_FILE}")
    return file


def _best_manager(folder: Path) -> ocp.CheckpointManager:
    return _manager(folder, 1, best_fn=itemgetter("loss"), best_mode="min")


def _manager(folder: Path, kept: int, **options: Any) -> ocp.CheckpointManager:
    # Written before the next step: an error is then told at its step, and a checkpoint that is there is whole.
    chosen = ocp.CheckpointManagerOptions(
        max_to_keep=kept, create=True, enable_async_checkpointing=False, **options
    )
    # With its handler named, a checkpoint can be asked what is in it.
    handler = ocp.StandardCheckpointHandler()
    return ocp.CheckpointManager(folder.resolve(), item_handlers=handler, options=chosen)


def _restore(manager: ocp.CheckpointManager, step: int | None, like: Any, folder: Path) -> Any:
    try:
        different = _different(manager.item_metadata(step).tree, like)
    except Exception:  # Of a damaged checkpoint; restoring it says how.
        different = None
    if different is not None:
        raise CheckpointError(f"{folder}: the checkpoint is of another model: {different}")
    try:
        restored = manager.restore(step, args=ocp.args.StandardRestore(like))
    except Exception as error:  # orbax raises ValueError, KeyError and more for a tree that does not fit.
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: the checkpoint is damaged or of another model ({reason})"
        ) from error
    return restored


def _different(stored: Any, like: Any) -> str | None:
    """Says which array of a checkpoint has another shape; asked before orbax, which would stop amid its reading."""
    shapes = {path: tuple(leaf.shape) for path, leaf in _arrays(stored)}
    for path, leaf in _arrays(like):
        if shapes.get(path, leaf.shape) != tuple(leaf.shape):
            return f"{path} has the shape {shapes[path]}, not {tuple(leaf.shape)}"
    return None


def _arrays(tree: Any) -> Iterator[tuple[str, Any]]:
    """Gives the arrays of a tree with their paths; a tuple with names has those of the mapping it is stored as."""
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
