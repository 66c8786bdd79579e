"""The folders for the files of shards."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from smalti.errors import StoreUnavailableError
from smalti.files import SCRATCH
from smalti.service.shards import scratch_folder

_KILLED = """
import os, signal
from smalti.files import temporary_folder
with temporary_folder() as folder:
    (folder / "candidates.tar").write_bytes(b"x")
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_folder_is_removed_with_its_files(temporary: Path) -> None:
    with scratch_folder() as folder:
        (folder / "output.tar").write_bytes(b"x")
        assert folder.parent == temporary
    assert list(temporary.iterdir()) == []


def test_folder_of_a_killed_process_is_removed_and_one_in_use_is_not(temporary: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED], capture_output=True, text=True, check=False)
    assert killed.returncode == -9
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    with scratch_folder() as used:
        (used / "output.tar").write_bytes(b"x")
        with scratch_folder() as other:
            assert not left.exists()
            assert (used / "output.tar").exists()
            assert set(temporary.iterdir()) == {used, other}


def test_empty_folder_is_removed_once_nobody_can_be_about_to_lock_it(temporary: Path) -> None:
    old, new = temporary / f"{SCRATCH}old", temporary / f"{SCRATCH}new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    with scratch_folder() as used:
        os.utime(used, (0, 0))
        with scratch_folder():
            assert used.exists()
            assert (old.exists(), new.exists()) == (False, True)


def test_full_disk_is_no_fault_of_the_shard(temporary: Path) -> None:
    with pytest.raises(StoreUnavailableError, match=f"{temporary}: No space left"), scratch_folder():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="not an image"), scratch_folder():
        raise OSError("not an image")
    assert list(temporary.iterdir()) == []
