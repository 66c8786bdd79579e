"""Splits: near copies are found and kept in one split, which depends on the pictures alone."""

from pathlib import Path

import numpy as np
from PIL import Image

from harness.captioned_pictures import encoded, make_csv, make_folder, picture
from smalti.training.data.configuration import ImportSettings
from smalti.training.data.importing import import_pictures
from smalti.training.data.near_duplicates import Fingerprints
from smalti.training.data.shards import read_rows, splits_in
from smalti.training.data.splits import split_clusters

SETTINGS = ImportSettings(resolution=32, smallest_side=32, validation=0.3)


def rows_of(data: Path) -> dict[str, list[dict[str, object]]]:
    return {split: list(read_rows(data, split)) for split in splits_in(data)}


def test_the_split_follows_from_the_pictures(tmp_path: Path) -> None:
    folder = import_pictures(make_folder(tmp_path / "a", 24), tmp_path / "from-folder", SETTINGS)
    import_pictures(make_csv(tmp_path / "b", 24), tmp_path / "from-csv", SETTINGS)
    import_pictures(make_folder(tmp_path / "c", 36), tmp_path / "larger", SETTINGS)

    def sides(data: str) -> dict[object, str]:
        rows = rows_of(tmp_path / data)
        return {row["picture"]: split for split, content in rows.items() for row in content}

    assert sides("from-folder") == sides("from-csv")
    assert sides("from-folder").items() <= sides("larger").items()
    assert folder.counts["split"]["validation"] == list(sides("from-folder").values()).count("validation")


def test_near_copies_are_in_one_split(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(16):
        original = picture(number, (96, 96))
        noisy = np.array(original).astype(int) + np.random.default_rng(99).integers(-6, 7, (96, 96, 3))
        copies = {
            "a.png": encoded(original),
            "b.jpg": encoded(original, "JPEG", quality=60),
            "c.png": encoded(original.resize((60, 60))),
            "d.png": encoded(Image.fromarray(noisy.clip(0, 255).astype(np.uint8))),
        }
        for place, (ending, content) in enumerate(copies.items()):
            (source / f"{number:02}{ending}").write_bytes(content)
            (source / f"{number:02}{ending}").with_suffix(".txt").write_text(f"caption {'wxyz'[place]} of it")
    report = import_pictures(source, tmp_path / "data", SETTINGS)
    assert report.counts["compare"]["different pictures"] == 64
    assert report.counts["compare"]["groups of near copies, or single pictures"] == 16
    side = {str(row["name"]): split for split, rows in rows_of(tmp_path / "data").items() for row in rows}
    assert len(side) == 64
    assert len({(name[:2], split) for name, split in side.items()}) == 16

    settings = SETTINGS.model_copy(update={"keep_near_duplicates": False})
    import_pictures(source, tmp_path / "first-only", settings)
    names = [row["name"] for rows in rows_of(tmp_path / "first-only").values() for row in rows]
    assert sorted(names) == [f"{number:02}a.png" for number in range(16)]  # type: ignore[type-var]


def test_pictures_that_differ_only_in_colour_are_not_copies() -> None:
    fingerprints = Fingerprints()
    for colour in ((200, 30, 30), (30, 30, 200), (203, 32, 28)):
        fingerprints.add(Image.new("RGB", (40, 40), colour))
    red, blue, almost_red = fingerprints.clusters().tolist()
    assert red == almost_red != blue
    assert Fingerprints().clusters().tolist() == []


def test_near_copies_are_found_across_blocks() -> None:
    fingerprints = Fingerprints()
    for number in range(1300):
        fingerprints.add(picture(number % 650, (24, 24)))
    clusters = fingerprints.clusters().tolist()
    assert clusters[:650] == clusters[650:]
    assert len(set(clusters)) > 640


def test_splits_have_their_shares() -> None:
    keys = [f"{number:08x}" for number in range(4000)]
    alone = np.arange(4000)
    splits = split_clusters(alone, keys, {"validation": 0.1, "test": 0.2})
    assert 340 < splits.count("validation") < 460
    assert 720 < splits.count("test") < 880
    assert split_clusters(alone, keys, {"validation": 0.1, "test": 0.2}, seed=1) != splits
    assert (
        split_clusters(alone[::-1] // 4, keys[::-1], {"validation": 0.5})
        == (split_clusters(alone // 4, keys, {"validation": 0.5})[::-1])
    )
    assert set(split_clusters(alone // 4, keys, {"validation": 0.5})[4:8]) in ({"train"}, {"validation"})
