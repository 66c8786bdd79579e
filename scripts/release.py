"""Makes what a release publishes, in `dist/VERSION`: `python -m scripts.release`.

The wheel and the source distribution, the chart, the images as OCI archives with bills of materials (SPDX), the notes
from CHANGELOG.md, and `SHA256SUMS` of all of them, signed with an SSH key if one is given. Nothing is published.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from scripts import images
from scripts.lock_files import LOCKS
from smalti.registry.folder import sha256_of

ROOT: Final = images.ROOT
CHART: Final = Path("deploy", "helm", "smalti")
TOOLS: Final = ROOT / "build" / "deploy-tools" / "bin"
SIGNED_AS: Final = "file"
"""The namespace of the signature, which whoever verifies it must name."""


def main() -> None:
    """Makes the release; ends with a line, and without a folder, if something is wrong."""
    options = parse(sys.argv[1:])
    version = images.version()
    if not options.snapshot and (problem := find_problem(ROOT, version)):
        sys.exit(f"release: {problem}")
    if options.key and not options.key.is_file():
        sys.exit(f"release: --key: {options.key} cannot be read")
    out = ROOT / "dist" / (f"{version}-snapshot" if options.snapshot else version)
    if out.exists():
        sys.exit(f"release: {out} exists already; remove it first")
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".release-") as folder:
        parts = Path(folder, "parts")
        parts.mkdir()
        (parts / "NOTES.md").write_text(notes(ROOT, "Unreleased" if options.snapshot else version))
        build_packages(parts, version)
        run(program("helm4", "helm"), "package", CHART, "--destination", parts)
        for service in options.services:
            build_image(options, parts, service)
        sign(parts, options.key)
        parts.rename(out)
    print(f"release: {out}{'' if options.key else ', not signed, since there is no --key'}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Returns the options; ends with a line if one is invalid."""
    parser = argparse.ArgumentParser(prog="release", description="Makes what a release publishes.")
    parser.add_argument(
        "--snapshot",
        action="store_true",
        help="make it of the tree as it is, whatever the version and the tag",
    )
    parser.add_argument("--key", type=Path, help="private SSH key that signs the checksums")
    parser.add_argument(
        "--services",
        nargs="*",
        default=images.SERVICES,
        choices=images.SERVICES,
        metavar="SERVICE",
        help=f"images to make, of {', '.join(images.SERVICES)}; all by default, none if none is named",
    )
    parser.add_argument("--base", default="python:3.11-slim", help="base of the images")
    return parser.parse_args(arguments)


def find_problem(root: Path, version: str) -> str:
    """Returns why the tree at `root` cannot be released as `version`; empty if it can be."""
    if changed := git(root, "status", "--porcelain"):
        return f"{changed.splitlines()[0][3:]} is not committed; commit or remove it"
    headings = re.findall(r"^## \[(.+?)\]", changelog(root), re.MULTILINE)
    if version not in headings:
        return f"CHANGELOG.md has no section [{version}]; move what is under Unreleased to one"
    if notes(root, "Unreleased").strip():
        return f"CHANGELOG.md has changes under Unreleased; move them to [{version}], or raise __version__"
    for key in ("version", "appVersion"):
        found = re.search(rf"^{key}: (\S+)$", (root / CHART / "Chart.yaml").read_text(), re.MULTILINE)
        if found is None or found[1] != version:
            return f"{CHART}/Chart.yaml: {key} must be {version}"
    tag = f"v{version}"
    tagged = git(root, "rev-parse", "--verify", "--quiet", f"{tag}^{{commit}}")
    if tagged and tagged != git(root, "rev-parse", "HEAD"):
        return f"the tag {tag} is at another commit, {tagged[:12]}; raise __version__"
    for other in git(root, "tag", "--points-at", "HEAD").splitlines():
        if re.fullmatch(r"v\d.*", other) and other != tag:
            return f"the commit has the tag {other}, but __version__ is {version}"
    return ""


def changelog(root: Path) -> str:
    """Returns the text of the changelog."""
    return (root / "CHANGELOG.md").read_text(encoding="utf-8")


def notes(root: Path, name: str) -> str:
    """Returns a section of the changelog, without its heading; empty if there is none."""
    found = re.search(
        rf"^## \[{re.escape(name)}\].*\n((?:(?!## \[|\[).*\n?)*)", changelog(root), re.MULTILINE
    )
    return found[1].strip() + "\n" if found else ""


def build_packages(folder: Path, version: str) -> None:
    """Builds the source distribution and the wheel into `folder`, and checks both in an empty environment."""
    epoch = {"SOURCE_DATE_EPOCH": git(ROOT, "log", "-1", "--format=%ct")}
    build = (sys.executable, "-m", "hatchling", "build", "--target")
    run(*build, "sdist", "--directory", folder, more=epoch)
    run(*build, "wheel", "--directory", folder, more=epoch)
    (wheel,) = folder.glob("*.whl")
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(scratch, filter="data")
        (source,) = Path(scratch).iterdir()
        run(*build, "wheel", "--directory", Path(scratch, "again"), cwd=source, more=epoch)
        if sha256_of(next(Path(scratch, "again").iterdir())) != sha256_of(wheel):
            sys.exit("release: the source distribution makes another wheel than the repository")
        environment = Path(scratch, "environment")
        venv.create(environment, with_pip=True)
        install = (environment / "bin" / "pip", "install", "--quiet", "--no-deps")
        run(*install, "--require-hashes", "--only-binary", ":all:", "--requirement", LOCKS / "client.txt")
        run(*install, "--no-index", wheel)
        said = run(environment / "bin" / "smalti", "--version", cwd=Path(scratch))
        if version not in said.split():
            sys.exit(f"release: the installed wheel says that its version is {said.strip()}, not {version}")


def build_image(options: argparse.Namespace, folder: Path, service: str) -> None:
    """Builds an image for this machine's processor, and writes it and its bill of materials into `folder`."""
    # The engine that can write an archive of OCI.
    run(sys.executable, "-m", "scripts.images", "--engine", "buildah", "--base", options.base, service)
    name = images.name_of(images.parse([service]), service)
    archive = folder / f"smalti-{service}-{images.version()}-{os.uname().machine}.oci.tar"
    run("buildah", "push", "--quiet", name, f"oci-archive:{archive}:{name}")
    materials = archive.with_name(archive.name.replace(".oci.tar", ".spdx.json"))
    run(program("syft"), "scan", "--quiet", f"oci-archive:{archive}", "--output", f"spdx-json={materials}")


def sign(folder: Path, key: Path | None) -> None:
    """Writes the checksums of all files, and their signature."""
    sums = folder / "SHA256SUMS"
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    sums.write_text("".join(lines), encoding="utf-8")
    if key is not None:
        run("ssh-keygen", "-q", "-Y", "sign", "-n", SIGNED_AS, "-f", key, sums)


def program(*names: str) -> str:
    """Returns the first program that `make` has installed for `deploy/`, or else one of the machine's."""
    for name in names:
        if found := shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}"):
            return found
    sys.exit(f"release: {names[-1]} is not installed; `make release` installs it")


def git(root: Path, *arguments: str) -> str:
    """Returns what git prints in a repository; empty if it fails."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip("\n") if done.returncode == 0 else ""


def run(
    *command: str | Path, cwd: Path = ROOT, more: Mapping[str, str] | Iterable[tuple[str, str]] = ()
) -> str:
    """Runs a command to its end and returns what it prints; ends with its errors if it fails."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **dict(more)}
    )
    if done.returncode:
        sys.exit(f"release: {Path(command[0]).name} failed; its lines above say why")
    return done.stdout


if __name__ == "__main__":
    main()
