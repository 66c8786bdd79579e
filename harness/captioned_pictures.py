"""Small pictures with captions in the common formats of data sets."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (48, 48), mode: str = "RGB") -> Image.Image:
    """Returns a picture of big soft blobs. Different seeds give no near duplicates; noise and scaling do."""
    blobs = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Returns a picture encoded as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_folder(root: Path, count: int) -> Path:
    """Writes pictures with captions beside them, in three folders, and returns their root."""
    for number in range(count):
        path = root / f"{number % 3}" / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number)))
        path.with_suffix(".txt").write_text(f"blobs of kind {number}\n")
    return root


def make_csv(root: Path, count: int) -> Path:
    """Writes pictures and a CSV with their captions and addresses, and returns it."""
    make_folder(root, count)
    with (root / "captions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "image", "caption"])
        for number in range(count):
            image = f"{number % 3}/{number:03}.png"
            writer.writerow([f"https://example.org/{number}", image, f"blobs, of kind {number}"])
    return root / "captions.csv"


def make_jsonl(root: Path, count: int) -> Path:
    """Writes pictures and a JSONL with their captions, and returns it."""
    make_folder(root, count)
    lines = [
        json.dumps({"image": f"{number % 3}/{number:03}.png", "caption": f"blobs of kind {number}"})
        for number in range(count)
    ]
    (root / "captions.jsonl").write_text("\n".join(lines))
    return root / "captions.jsonl"


def make_tar(root: Path, count: int) -> Path:
    """Writes pictures with captions and addresses as two webdataset shards, and returns their folder."""
    root.mkdir(exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard:05}.tar", "w") as archive:
            for number in range(shard, count, 2):
                add_file(archive, f"{number:06}.jpg", encoded(picture(number), "JPEG", quality=95))
                if number % 4 < 2:
                    add_file(archive, f"{number:06}.txt", f"blobs of kind {number}".encode())
                record = {"caption": f"blobs of kind {number}", "url": f"https://example.org/{number}"}
                add_file(archive, f"{number:06}.json", json.dumps(record).encode())
    return root


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
