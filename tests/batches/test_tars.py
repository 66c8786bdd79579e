"""Tars of batches: what was not finished is removed, and what is damaged is told."""

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from smalti.batches import PictureFormat, TarWriter, read_tar
from smalti.errors import DamagedObjectError
from tests.batches.drawn import draw, text_plan


def written(path: Path) -> Path:
    [shard] = text_plan(2).shards()
    with TarWriter(path, PictureFormat.PNG, model="tiny", revision="0") as tar:
        for prompt in shard.prompts:
            tar.add(prompt, draw(prompt))
    return path


def test_members_are_alike_on_every_machine(tmp_path: Path) -> None:
    with tarfile.open(written(tmp_path / "0.tar")) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [
        f"{row:09d}-{rank}.{ending}" for row in (0, 1) for rank in (0, 1) for ending in ("png", "json")
    ]
    owners = {(each.mtime, each.uid, each.gid, each.uname, each.gname, each.mode) for each in members}
    assert owners == {(0, 0, 0, "", "", 0o644)}


def test_a_tar_that_was_not_finished_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with (
        pytest.raises(InterruptedError),
        TarWriter(path, PictureFormat.PNG, model="tiny", revision="0"),
    ):
        raise InterruptedError
    assert not path.exists()


@pytest.mark.parametrize("names", [["a.json"], ["a.png", "b.json"], ["a.png", "a.txt"]])
def test_a_picture_and_its_description_belong_together(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(written(tmp_path / "good.tar")) as good:
        contents = {ending: good.extractfile(f"000000000-0.{ending}").read() for ending in ("png", "json")}  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for name in names:
            content = contents.get(name.rpartition(".")[2], b"a fox")
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    with (
        path.open("rb") as file,
        pytest.raises(DamagedObjectError, match=r"without its description|has no picture"),
    ):
        list(read_tar("0.tar", file))


@pytest.mark.parametrize("left", [10, 700])
def test_a_tar_that_is_cut_off(tmp_path: Path, left: int) -> None:
    content = written(tmp_path / "0.tar").read_bytes()[:left]
    with pytest.raises(DamagedObjectError):
        list(read_tar("0.tar", BytesIO(content)))
