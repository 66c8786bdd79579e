"""Generates `smalti/v1/` from `protos/`, or checks that it is current.

    scripts/protos.py                      check as below, then generate
    scripts/protos.py --check              check lint, format, compatibility, and that the generated files are current
    scripts/protos.py --accept-breaking    generate, and accept an incompatible contract as the new baseline

`protos/smalti-v1.binpb` is the contract that clients rely on. Compatible changes update it; an incompatible one is
refused unless the option accepts it. It is a file, not a branch, so a clone without history can check, too.
"""

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
BASELINE = PROTOS / "smalti-v1.binpb"
GENERATED = ROOT / "smalti" / "v1"
# Written by hand; all other files in the folder are generated.
OURS = {"__init__.py"}
TOOLS = Path(sys.executable).parent


def run(*command: str | Path) -> bool:
    """Runs a tool of the virtual environment in `protos/` and returns whether it succeeded."""
    # protoc finds its plugins by PATH.
    path = f"{TOOLS}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run([*map(str, command)], cwd=PROTOS, env={**os.environ, "PATH": path}, check=False)
    return done.returncode == 0


def buf(*arguments: str | Path) -> bool:
    """Runs buf."""
    return run(TOOLS / "buf", *arguments)


def build(image: Path) -> None:
    """Writes the contract as one image, without comments, so that it changes only with the contract."""
    if not buf("build", "--exclude-source-info", "-o", image):
        sys.exit("protos: the files do not compile; nothing was generated")


def generate(folder: Path) -> None:
    """Writes the Python modules and their type stubs into a folder."""
    files = sorted(PROTOS.glob("smalti/v1/*.proto"))
    services = [file for file in files if "\nservice " in file.read_text(encoding="utf-8")]
    protoc = (sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}")
    for outputs, sources in (
        ([f"--python_out={folder}", f"--mypy_out=quiet:{folder}"], files),
        ([f"--grpc_python_out={folder}", f"--mypy_grpc_out=quiet:{folder}"], services),
    ):
        if not run(*protoc, *outputs, *sources):
            sys.exit("protos: generation failed; nothing was changed")


def generated_files(folder: Path) -> set[str]:
    """Returns the names of the generated files in a folder."""
    return {path.name for path in folder.glob("*.py*") if path.name not in OURS}


def outdated(fresh: Path) -> list[str]:
    """Returns the sorted names of the files of `smalti/v1/` that differ from what the protos generate."""
    names = sorted(generated_files(fresh) | generated_files(GENERATED))
    _, different, absent = filecmp.cmpfiles(fresh, GENERATED, names, shallow=False)
    return sorted([*different, *absent])


def same_contract(one: Path, other: Path) -> bool:
    """Returns whether two images hold the same contract."""
    images = [FileDescriptorSet.FromString(path.read_bytes()) for path in (one, other)]
    return images[0] == images[1]


def main() -> int:
    """Checks, and generates unless told to check only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if anything is wrong"
    )
    parser.add_argument("--accept-breaking", action="store_true", help="accept an incompatible contract")
    arguments = parser.parse_args()

    if not arguments.check:
        buf("format", "--write")
    good = buf("lint") & buf("format", "--diff", "--exit-code")
    if not arguments.accept_breaking and not buf("breaking", "--against", BASELINE):
        print("protos: this change breaks existing clients; make it compatible, or add a package smalti.v2")
        good = False
    if not good:
        return 1

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        build(scratch / BASELINE.name)
        generate(scratch)
        fresh = scratch / "smalti" / "v1"
        stale = outdated(fresh)
        if arguments.check:
            if not same_contract(scratch / BASELINE.name, BASELINE):
                stale.append(BASELINE.name)
            print(f"protos: outdated: {', '.join(stale)}; run `make protos`" if stale else "protos: current")
            return 1 if stale else 0
        for file in generated_files(GENERATED):
            (GENERATED / file).unlink()
        for file in generated_files(fresh):
            shutil.copyfile(fresh / file, GENERATED / file)
        shutil.copyfile(scratch / BASELINE.name, BASELINE)
    print(f"protos: {len(stale)} files changed in {GENERATED.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
