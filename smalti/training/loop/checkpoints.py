"""Checkpoints of a run: writing them whole, and passing over one that is damaged."""

import errno
import shutil
import warnings
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from smalti.errors import CheckpointError, SmaltiError, SmaltiWarning

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Checkpoints:
    """A folder of checkpoints."""

    def __init__(self, folder: Path, *, kept: int, **options: Any) -> None:
        """Opens the folder, which is made if it is missing.

        Args:
            folder: the folder.
            kept: number of checkpoints that are kept.
            options: further options of `orbax.checkpoint.CheckpointManagerOptions`.

        Raises:
            CheckpointError: the loss of a checkpoint cannot be read.
        """
        # Synchronous, so that an error appears at its own step and an existing checkpoint is always complete.
        chosen = ocp.CheckpointManagerOptions(
            max_to_keep=kept, create=True, enable_async_checkpointing=False, **options
        )
        # The explicit handler makes `item_metadata` work, which `_restore` calls.
        handler = ocp.StandardCheckpointHandler()
        self.folder = folder
        try:
            self._manager = ocp.CheckpointManager(folder.resolve(), item_handlers=handler, options=chosen)
        except Exception as error:  # orbax reads the losses of all checkpoints, whatever their files hold.
            raise CheckpointError(
                f"{folder}: a checkpoint is damaged ({_reason(error)}); move the folder away to go on without it"
            ) from error

    @classmethod
    def best(cls, folder: Path) -> "Checkpoints":
        """Opens a folder that keeps the checkpoint with the smallest loss."""
        return cls(folder, kept=1, best_fn=itemgetter("loss"), best_mode="min")

    @property
    def newest_step(self) -> int | None:
        """Step of the newest checkpoint; None if there is none."""
        step: int | None = self._manager.latest_step()
        return step

    def smallest_loss(self) -> float:
        """Returns the loss of the kept checkpoint; infinite if there is none, or if it cannot be read."""
        step = self.newest_step
        if step is None:
            return float("inf")
        try:
            return float(self._manager.metrics(step)["loss"])
        except Exception as error:  # Whatever the file holds.
            _say(f"{self.folder}: the loss of step {step} cannot be read ({_reason(error)}); chosen anew")
            self._set_aside(step)
            return float("inf")

    def restore(self, like: Any, *, older: bool = False) -> Any:
        """Returns the newest state, with the types and devices of `like`.

        Args:
            like: the state that is expected.
            older: whether to pass over a damaged checkpoint: the next older one is used, with a warning, and the
                damaged one is moved to the folder `damaged` of the run.

        Raises:
            CheckpointError: the checkpoint is damaged, or belongs to another model.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        first: CheckpointError | None = None
        for position, step in enumerate(steps):
            try:
                restored = self._restore(step, like)
            except CheckpointError as error:
                first = first or error
                if not older or isinstance(error, _OtherModelError):
                    break
                continue
            for damaged in steps[:position]:
                _say(f"{first}; the run continues from the one before, of step {step}")
                self._set_aside(damaged)
            return restored
        raise first or CheckpointError(f"{self.folder}: there is no checkpoint")

    def save(self, step: int, tree: Any, metrics: dict[str, float] | None = None) -> None:
        """Writes a checkpoint, then deletes the oldest one.

        Raises:
            SmaltiError: the disk is full or cannot be written; earlier checkpoints stay intact.
        """
        try:
            self._manager.save(step, args=ocp.args.StandardSave(tree), metrics=metrics, force=True)
        except Exception as error:  # orbax passes on errors of the file system and of tensorstore.
            # A partial checkpoint has another name and only takes up space.
            for partial in self.folder.glob(f"{step}.*"):
                shutil.rmtree(partial, ignore_errors=True)
            raise SmaltiError(
                f"{self.folder}: the checkpoint of step {step} cannot be written ({_reason(error)}); "
                f"the newest one is that of step {self.newest_step}"
            ) from error

    def close(self) -> None:
        """Closes the folder."""
        self._manager.close()

    def _restore(self, step: int, like: Any) -> Any:
        try:
            different = _different(self._manager.item_metadata(step).tree, like)
        except Exception:  # The checkpoint is damaged; restoring it says how.
            different = None
        if different is not None:
            raise _OtherModelError(f"{self.folder}: the checkpoint belongs to another model: {different}")
        try:
            restored = self._manager.restore(step, args=ocp.args.StandardRestore(like))
        except (
            Exception
        ) as error:  # orbax raises ValueError, KeyError and others for a tree that does not match.
            raise CheckpointError(
                f"{self.folder}: the checkpoint of step {step} is damaged or belongs to another model "
                f"({_reason(error)})"
            ) from error
        return restored

    def _set_aside(self, step: int) -> None:
        """Moves a checkpoint out of the folder; it is not deleted, since it may be readable elsewhere."""
        aside = self.folder.parent / "damaged" / f"{self.folder.name}-{step}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        (self.folder / str(step)).rename(aside)
        self._manager.reload()


class _OtherModelError(CheckpointError):
    """A checkpoint is of a model of other sizes; an older one would be too."""


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


def _say(text: str) -> None:
    warnings.warn(text, SmaltiWarning, stacklevel=3)


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return "the disk is full"
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    return "the disk is full" if "No space left" in text or "File too large" in text else text[:200]
