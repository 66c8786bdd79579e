"""Compiles every program for TPUs that are not there, and tells what the compiler says of them.

    python -m benchmarks.tpu                                 everything; many hours on two cores
    python -m benchmarks.tpu --only mini-step-16-v5e-1x1     rows whose names match a pattern, such as `*-step-*-v5e-*`
    python -m benchmarks.tpu --write docs/performance.md     writes the table of all that is compiled into a page

Results are kept in a folder by program and versions, so an interrupted run goes on where it was. libtpu, which holds
the compiler, is installed from `locks/jax-tpu.txt` into a folder of its own, unless this Python has it.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.tpu.kernels import dumping
from benchmarks.tpu.rows import Row, all_rows
from benchmarks.tpu.table import table, write
from smalti.errors import InvalidInputError
from smalti.files import write_atomically

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "tpu"
LOCK = ROOT / "locks" / "jax-tpu.txt"
MARK = "result: "
ROW_SECONDS = 3600.0


def pinned() -> tuple[str, str]:
    """Returns the lines of the lock for libtpu, and its version."""
    found = re.search(r"^libtpu==(\S+).*?(?=^\S)", LOCK.read_text("utf-8") + "\nend", re.M | re.S)
    if found is None:
        raise SystemExit(f"{LOCK}: has no libtpu")
    return found[0], found[1]


def find_libtpu() -> Path:
    """Returns the folder to import libtpu from; installs the version of the lock if there is none."""
    spec = find_spec("libtpu")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parents[1]
    requirement, libtpu = pinned()
    folder = FOLDER / f"libtpu-{libtpu}"
    if not (folder / "libtpu").is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        lock = FOLDER / "libtpu.txt"
        lock.write_text(requirement, "utf-8")
        options = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", str(folder))
        subprocess.run(
            [sys.executable, "-m", "pip", "install", *options, "--requirement", str(lock)], check=True
        )
    return folder


def compile_apart(row: Row) -> dict[str, Any]:
    """Compiles a row in a process of its own, which has libtpu.

    Raises:
        RuntimeError: it does not compile; has the last line of what the compiler said.
    """
    found = _apart("--row", row.name)
    if found["kernels"] and row.program == "step":
        with tempfile.TemporaryDirectory(prefix="schedules-") as folder:
            counts = _apart("--kernels", row.name, folder, **dumping(Path(folder)))
        kernels = found["kernels"]
        found["kernels"] = {name: {"count": kernels[name][0], **each} for name, each in counts.items()}
    return found


def _apart(*arguments: str, **variables: str) -> dict[str, Any]:
    """Runs this module with libtpu and more environment variables; returns what it has found."""
    paths = [str(find_libtpu()), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu", *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=ROW_SECONDS,
    )  # fmt: skip
    said = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not said:
        problem = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise RuntimeError(problem[-1])
    found: dict[str, Any] = json.loads(said[-1].removeprefix(MARK))
    return found


def _versions() -> str:
    """Returns a checksum of what a result depends on beside its row."""
    from smalti.compilation.target import code_digest

    parts = (code_digest(), version("jax"), version("jaxlib"), pinned()[1])
    measuring = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("[pek]*.py")))
    return hashlib.sha256(repr(parts).encode() + measuring).hexdigest()[:16]


def run(rows: Sequence[Row], folder: Path) -> dict[str, str]:
    """Compiles the rows that are not kept; returns the errors."""
    versions, errors = _versions(), {}
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        kept = folder / f"{row.name}-{versions}.json"
        if kept.exists():
            continue
        try:
            found = compile_apart(row)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            errors[row.name] = str(error)
            print(f"{row.name}: {error}", flush=True)
            continue
        write_atomically(kept, json.dumps(found, indent=1))
        print(f"{row.name}: {json.dumps(found)}", flush=True)
    return errors


def load(folder: Path) -> dict[str, Any]:
    """Returns the results of the present versions by the names of their rows."""
    end = f"-{_versions()}.json"
    return {
        path.name.removesuffix(end): json.loads(path.read_text("utf-8")) for path in folder.glob(f"*{end}")
    }


def main() -> None:
    """Compiles the rows and prints or writes the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="PATTERN", default=["*"], help="names of rows")
    parser.add_argument("--kept", type=Path, default=FOLDER / "results", help="folder of the results")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this page")
    parser.add_argument("--list", action="store_true", help="list the rows, and compile nothing")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--kernels", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = all_rows()
    if options.row or options.kernels:
        from benchmarks.tpu.programs import compile_kernels, compile_row

        name, *folder = options.kernels or (options.row,)
        row = next(each for each in rows if each.name == name)
        found = compile_kernels(row, Path(folder[0])) if folder else compile_row(row)
        print(MARK + json.dumps(found), flush=True)
        return
    chosen = [row for row in rows if any(fnmatch.fnmatch(row.name, each) for each in options.only)]
    if not chosen:
        parser.error(f"--only: no row is called {' '.join(options.only)}; --list lists them")
    if options.list:
        print("\n".join(row.name for row in chosen))
        return
    errors = run(chosen, options.kept)
    results = load(options.kept)
    if options.write:
        try:
            write(options.write, rows, results)
        except InvalidInputError as error:
            parser.error(str(error))
    else:
        print("", *table(rows, results), sep="\n")
    if errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
