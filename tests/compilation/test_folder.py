"""The folder of compiled programs: whom it trusts, damage, and its size."""

import os
import time
from pathlib import Path

import pytest

from smalti.compilation.folder import MAX_PARTIAL_SECONDS, PrivateFolder

CONTENT = b"machine code" * 1000


@pytest.fixture
def folder(tmp_path: Path) -> PrivateFolder:
    return PrivateFolder.open(tmp_path / "programs")


def test_folder_is_created_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = PrivateFolder.open(tmp_path / "cache" / "smalti" / "programs")
        folder.write("one", CONTENT)
    finally:
        os.umask(before)
    for each in (folder.path, folder.path.parent, folder.path.parent.parent):
        assert each.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in folder.path.iterdir()] == [0o600]
    assert folder.load("one") == CONTENT
    assert folder.load("other") is None


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    PrivateFolder.open(tmp_path / "programs")
    (tmp_path / "programs").chmod(mode)
    with pytest.raises(PermissionError, match=r"others can write to .*programs; chmod go-w"):
        PrivateFolder.open(tmp_path / "programs")


def test_folder_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(PermissionError, match=r"others can write to .*shared, and replace what is in it"):
        PrivateFolder.open(tmp_path / "shared" / "programs")
    PrivateFolder.open(tmp_path / "shared" / "programs", trust_parents=True)
    (tmp_path / "shared" / "programs").chmod(0o770)
    with pytest.raises(PermissionError, match=r"others can write to .*programs; chmod go-w"):
        PrivateFolder.open(tmp_path / "shared" / "programs", trust_parents=True)
    (tmp_path / "shared" / "programs").chmod(0o700)
    (tmp_path / "shared").chmod(0o1777)
    PrivateFolder.open(tmp_path / "shared" / "programs")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_folder_and_files_of_other_users_are_refused(tmp_path: Path, folder: PrivateFolder) -> None:
    folder.write("one", CONTENT)
    (folder.path / "one.program").chmod(0o600)
    os.chown(folder.path / "one.program", 12345, -1)
    assert folder.load("one") is None
    os.chown(folder.path, 12345, -1)
    with pytest.raises(PermissionError, match="belongs to user 12345"):
        PrivateFolder.open(folder.path)


def test_file_that_others_can_write_is_ignored(folder: PrivateFolder) -> None:
    folder.write("one", CONTENT)
    (folder.path / "one.program").chmod(0o622)
    assert folder.load("one") is None


def test_link_and_pipe_are_ignored(tmp_path: Path, folder: PrivateFolder) -> None:
    folder.write("one", CONTENT)
    (folder.path / "one.program").rename(tmp_path / "elsewhere")
    (folder.path / "one.program").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder.path / "two.program", 0o600)
    assert folder.load("one") is None
    assert folder.load("two") is None


@pytest.mark.parametrize(
    "damaged", [b"", CONTENT[:10], CONTENT, b"smalti program 1\n" + bytes(32) + CONTENT, b"\x80\x04."]
)
def test_damaged_file_is_ignored_and_replaced(folder: PrivateFolder, damaged: bytes) -> None:
    folder.write("one", CONTENT)
    (folder.path / "one.program").write_bytes(damaged)
    assert folder.load("one") is None
    folder.write("one", CONTENT)
    assert folder.load("one") == CONTENT


def test_every_changed_byte_is_noticed(folder: PrivateFolder) -> None:
    folder.write("one", CONTENT)
    file = folder.path / "one.program"
    stored = bytearray(file.read_bytes())
    for place in (0, 20, len(stored) // 2, len(stored) - 1):
        stored[place] ^= 1
        file.write_bytes(stored)
        assert folder.load("one") is None
        stored[place] ^= 1


def test_exchanged_folder_has_no_effect(tmp_path: Path, folder: PrivateFolder) -> None:
    folder.write("one", CONTENT)
    folder.path.rename(tmp_path / "moved")
    other = PrivateFolder.open(tmp_path / "programs")
    other.write("one", b"something else")
    assert folder.load("one") == CONTENT


def test_files_that_were_used_longest_ago_are_removed(folder: PrivateFolder) -> None:
    now = time.time()
    for age, name in enumerate(("new", "middle", "old")):
        folder.write(name, CONTENT)
        os.utime(folder.path / f"{name}.program", (now - 10_000 * age,) * 2)
    (folder.path / "notes.txt").write_bytes(CONTENT)
    assert folder.load("old") == CONTENT  # Now it is the newest.
    folder.trim(2 * len(CONTENT) + 200)
    assert {file.name for file in folder.path.iterdir()} == {"new.program", "old.program", "notes.txt"}


def test_files_of_killed_processes_are_removed(folder: PrivateFolder) -> None:
    for name, age in (("old", MAX_PARTIAL_SECONDS + 60), ("young", 0)):
        file = folder.path / f".{name}.partial"
        file.write_bytes(CONTENT)
        os.utime(file, (time.time() - age,) * 2)
    folder.trim(10**9)
    assert [file.name for file in folder.path.iterdir()] == [".young.partial"]


def test_failed_write_leaves_nothing(folder: PrivateFolder) -> None:
    (folder.path / "one.program").mkdir()
    with pytest.raises(OSError, match="one"):
        folder.write("one", CONTENT)
    assert [file.name for file in folder.path.iterdir()] == ["one.program"]


def test_folder_that_takes_no_file_says_why(tmp_path: Path) -> None:
    folder = PrivateFolder.open(tmp_path / "compiled")
    assert folder.find_problem() == ""
    (tmp_path / "compiled").rmdir()
    assert folder.find_problem() == "No such file or directory"
    folder.read_only = True
    folder.write("name", b"content")
    folder.trim(0)
