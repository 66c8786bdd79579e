"""Import of a user's own pictures: reproducible, all or nothing, its settings and command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from harness.captioned_pictures import make_folder, picture
from harness.paths import DOCS
from smalti.cli.data import register
from smalti.errors import InvalidInputError
from smalti.training.data.configuration import ImportSettings, load_import_settings
from smalti.training.data.importing import import_pictures
from smalti.training.data.shards import splits_in

SETTINGS = ImportSettings(resolution=32, smallest_side=32, validation=0.3)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 12)
    for name in ("one", "two"):
        import_pictures(source, tmp_path / name, SETTINGS)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert one == two


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 3)
    captions = tmp_path / "captions"
    captions.mkdir()
    (captions / "a.txt").write_text("no pictures at all")
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "list.xml").write_text("<a/>")
    before = sorted(tmp_path.rglob("*"))
    for given, settings, message in (
        (tmp_path / "nowhere", SETTINGS, r"source: .* does not exist"),
        (tmp_path / "list.xml", SETTINGS, r"source: .* must be a folder or end in \.csv"),
        (captions, SETTINGS, r"a usable picture with a caption \(1 x caption without a picture\)"),
        (empty, SETTINGS, r"source: .*a usable picture with a caption$"),
        (source, SETTINGS.model_copy(update={"validation": 0.0001}), r"validation: none of 3 pictures"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            import_pictures(given, tmp_path / "data", settings)
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InvalidInputError, match=r"out: .*is not empty"):
        import_pictures(source, captions, SETTINGS)
    with pytest.raises(InvalidInputError, match=r"out: .*is a file"):
        import_pictures(source, tmp_path / "list.xml", SETTINGS)


def test_overwriting_keeps_the_old_data_set_until_the_new_one_is_complete(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 12)
    import_pictures(source, tmp_path / "data", SETTINGS)
    old = {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*.parquet")}
    none = SETTINGS.model_copy(update={"smallest_side": 500})
    with pytest.raises(InvalidInputError, match="12 x too small"):
        import_pictures(source, tmp_path / "data", none, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").glob("*.parquet")} == old
    import_pictures(
        source, tmp_path / "data", SETTINGS.model_copy(update={"validation": 0.0}), overwrite=True
    )
    assert splits_in(tmp_path / "data") == ["train"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from smalti.errors import SmaltiError
from smalti.training.data.importing import import_pictures
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    import_pictures(Path(sys.argv[1]), Path(sys.argv[2]))
except SmaltiError as error:
    print(error)
"""


def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", 12)
    for path in source.rglob("*.png"):
        picture(int(path.stem), (80, 80)).save(path)
    out = tmp_path / "data"
    command = [sys.executable, "-c", FULL_DISK, str(source), str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout == f"{out} cannot be written: the disk is full\n"
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_settings_files(tmp_path: Path) -> None:
    path = tmp_path / "import.toml"
    path.write_text("resolution = 64\nvalidation = 0.1\nkeep_near_duplicates = false\n")
    assert load_import_settings(path) == ImportSettings(
        resolution=64, validation=0.1, keep_near_duplicates=False
    )
    for content, message in {
        "resolutoin = 64": r"import\.toml: resolutoin: there is no such key",
        "resolution = 'big'": r"import\.toml: resolution: .*valid integer",
        "validation = 1.0": r"import\.toml: validation: .*less than 1",
        "validation = 0.5\ntest = 0.5": r"import\.toml: .*leave pictures to train on",
        "= 1": r"import\.toml: cannot be read as TOML",
    }.items():
        path.write_text(content)
        with pytest.raises(InvalidInputError, match=message) as caught:
            load_import_settings(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_import_settings(tmp_path / "none.toml")


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    source = make_folder(tmp_path / "source", 12)
    (source / "alone.txt").write_text("nothing to see")
    (tmp_path / "import.toml").write_text("resolution = 32\nsmallest_side = 32\nvalidation = 0.3\n")
    command = [
        "data",
        "import",
        str(source),
        str(tmp_path / "data"),
        "--config",
        str(tmp_path / "import.toml"),
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "not used: 1, all listed in" in result.stdout
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "data").glob("*.parquet"))
    assert rows == 12


def test_every_setting_is_documented() -> None:
    documentation = (DOCS / "data.md").read_text("utf-8")
    documented = re.findall(
        r"^\| `(\w+)` \| (\S+) \|", documentation.partition("`--config FILE`")[2], re.MULTILINE
    )
    defaults = {name: json.dumps(value) for name, value in ImportSettings().model_dump().items()}
    assert dict(documented) == defaults
