"""Output folders: apart from inputs, locked, replaced only if they are ours, and left as they were on failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from smalti.errors import InvalidInputError, SmaltiError
from smalti.outputs import MARK_FILE, check_file, check_folder, open_folder, whole_folder
from smalti.outputs.mark import PARTIAL_FOLDER


def make(out: Path, text: str = "new", *, overwrite: bool | None = True, **options: Path) -> None:
    with whole_folder(out, inputs=options, overwrite=overwrite) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "mine" / "pictures"
    folder.mkdir(parents=True)
    (folder / "p.png").write_text("picture")
    return folder


def test_output_is_apart_from_its_inputs(tmp_path: Path, source: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(source)
    hard = tmp_path / "list.csv"
    hard.hardlink_to(source / "p.png")
    for out, given, relation in (
        (source, source, "is"),
        (link, source, "is"),
        (source, link, "is"),
        (source / "." / ".." / "pictures", source, "is"),
        (source / "new" / "deep", source, "lies in"),
        (link / "new", source, "lies in"),
        (source.parent, source, "holds"),
        (source, source / "p.png", "holds"),
        (tmp_path, link, "holds"),
    ):
        before = files(tmp_path)
        for overwrite in (False, True):
            with pytest.raises(InvalidInputError, match=rf"^out: .* {relation} the input source"):
                make(out, overwrite=overwrite, source=given)
        assert files(tmp_path) == before
    make(tmp_path / "mine" / "data", source=source)
    # Where nothing is ever removed, an input may be below.
    with open_folder(source.parent, inputs={"source": source}):
        pass
    with (
        pytest.raises(InvalidInputError, match="lies in the input"),
        open_folder(source, inputs={"a": source.parent}),
    ):
        pass
    with pytest.raises(InvalidInputError, match="is the input"):
        check_file(hard, inputs={"list": source / "p.png"})
    with pytest.raises(InvalidInputError, match="is a folder"):
        check_file(source)


def test_only_what_was_written_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    with pytest.raises(
        InvalidInputError, match=r"^out: .* is not empty; give another folder, or --overwrite$"
    ):
        make(out, overwrite=False)
    make(out, "newer")
    assert json.loads(files(out).pop(MARK_FILE)) == {"files": ["inner/file"]}
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match=r"files that Smalti did not write, such as notes\.txt"):
        make(out)
    (out / "notes.txt").unlink()
    (out / MARK_FILE).unlink()
    with pytest.raises(InvalidInputError, match=r"was not written by Smalti .*remove it yourself"):
        make(out)
    assert files(out) == {"inner/file": "newer"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_failure_leaves_everything_as_it_was(tmp_path: Path) -> None:
    def fail(out: Path, error: BaseException) -> None:
        with whole_folder(out, overwrite=True) as folder:
            (folder / "half").write_text("half")
            raise error

    old = tmp_path / "old"
    make(old)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for out in (old, tmp_path / "empty", tmp_path / "not" / "there", tmp_path):
        for error in (KeyboardInterrupt(), ValueError(), OSError(28, "No space left on device")):
            with pytest.raises((KeyboardInterrupt, ValueError, SmaltiError, InvalidInputError)):
                fail(out, error)
            assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(SmaltiError, match=r"new cannot be written: the disk is full"):
        fail(tmp_path / "new", OSError(28, "No space left on device"))
    # An input that cannot be read is not blamed on the output.
    with pytest.raises(SmaltiError, match=r"^/elsewhere/input: Permission denied"):
        fail(tmp_path / "new", PermissionError(13, "Permission denied", "/elsewhere/input"))


def test_links_mounts_and_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.symlink_to(disk, target_is_directory=True)
    make(out)
    assert out.is_symlink()
    assert files(disk)["inner/file"] == "new"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "target")
    make(dangling)
    assert files(tmp_path / "target")["inner/file"] == "new"
    # The current folder stays the same one, so that the user's shell is not left in one that is gone.
    inode = disk.stat().st_ino
    monkeypatch.chdir(disk)
    (disk / ".DS_Store").touch()
    make(Path(), "newer")
    assert (files(disk)["inner/file"], disk.stat().st_ino) == ("newer", inode)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InvalidInputError, match="is a file"):
        make(loop)
    with pytest.raises(SmaltiError, match="File name too long"):
        make(tmp_path / ("x" * 300))
    # A name with a line break, and one that is not valid Unicode.
    for name in (b"a\nb", b"caf\xe9"):
        make(tmp_path / os.fsdecode(name))
        make(tmp_path / os.fsdecode(name))


AS_NOBODY = """
import os, sys
from pathlib import Path
from smalti.errors import InvalidInputError
from smalti.outputs import open_folder, whole_folder
parent = Path(sys.argv[1])
with whole_folder(parent / "first"):  # Imports what the other user may not read.
    pass
os.setuid(65534)
for out in ("closed/new", "closed/old"):
    try:
        with whole_folder(parent / out, overwrite=True):
            raise SystemExit("not refused")
    except InvalidInputError as error:
        print(error)
for text in ("one", "two"):
    with whole_folder(parent / "closed" / "open", overwrite=True) as folder:
        (folder / "file").write_text(text)
print((parent / "closed" / "open" / "file").read_text())
"""


@pytest.mark.process
@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    closed = tmp_path / "closed"
    for path, mode in ((closed / "old", 0o755), (closed / "open", 0o777)):
        path.mkdir(parents=True)
        path.chmod(mode)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, tmp_path], capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"out: {closed}/new cannot be written: the permission is missing ({closed})",
        f"out: {closed}/old cannot be written: the permission is missing ({closed}/old)",
        "two",
    ]
    assert sorted(path.name for path in (closed / "open").iterdir()) == [MARK_FILE, "file"]


def test_lock_names_its_holder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    named = rf"^out: .*out is being written by process {os.getpid()} on .* since \d{{4}}-.*; wait for its end"
    with whole_folder(out, overwrite=True):
        for second in (whole_folder(out), open_folder(out)):
            with pytest.raises(InvalidInputError, match=named), second:
                pass
        with open_folder(out, exclusive=False):
            pass
    with open_folder(out), pytest.raises(InvalidInputError, match=named), open_folder(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from smalti.outputs import whole_folder
with whole_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
def test_what_a_killed_process_has_left_is_cleaned_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    before = files(out)
    subprocess.run([sys.executable, "-c", KILLED, out], timeout=120)
    assert files(out) == before
    assert len(list(tmp_path.iterdir())) == 3
    make(out, "newer")
    assert files(out)["inner/file"] == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    # Killed between the two renamings.
    out.rename(tmp_path / ".out.smalti-old")
    with pytest.raises(InvalidInputError, match="is not empty"):
        make(out, overwrite=False)
    assert files(out)["inner/file"] == "newer"


@pytest.mark.process
def test_what_a_killed_process_has_left_in_the_current_folder_is_cleaned_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-c", KILLED, "."], timeout=120)
    assert (tmp_path / PARTIAL_FOLDER / "half").exists()
    make(Path(), "newer")
    assert files(tmp_path)["inner/file"] == "newer"
    assert {path.name for path in tmp_path.iterdir()} == {"inner", MARK_FILE}


def test_added_files_belong_to_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    with open_folder(out) as opened:
        (opened.path / "card.md").write_text("card")
    assert json.loads((out / MARK_FILE).read_text())["files"] == ["card.md", "inner/file"]
    make(out)
    (out / "notes.txt").touch()

    def fail(keep: bool) -> None:
        with open_folder(out, undone=("inner", "made", "settings")) as opened:
            (out / "made").mkdir()
            (out / "settings").touch()
            (out / "other").touch()
            if keep:
                opened.keep()
            raise ValueError

    stays = {"inner", "notes.txt", "other"}
    for keep, left in ((False, stays), (True, {*stays, "made", "settings"})):
        with pytest.raises(ValueError):  # noqa: PT011
            fail(keep)
        assert {path.name for path in out.iterdir()} - {MARK_FILE} == left
        (out / "other").unlink()


def test_check_changes_nothing(tmp_path: Path) -> None:
    check_folder(tmp_path / "not" / "there")
    (tmp_path / "file").touch()
    for out, problem in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "since .*file is a file"),
    ):
        with pytest.raises(InvalidInputError, match=problem):
            check_folder(out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
