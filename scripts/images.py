"""Builds the images of the services with buildah or docker: `python -m scripts.images [SERVICE ...]`.

Packages come from where pip finds them on this machine: its configuration goes into the build as a secret, which no
layer keeps. Folders of wheels and indexes on this machine are mounted, which buildah alone can do; docker does without
them. Uses the standard library only.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

ROOT: Final = Path(__file__).resolve().parent.parent
DOCKERFILE: Final = ROOT / "deploy" / "images" / "Dockerfile"
SERVICES: Final = ("encoder", "generator", "decoder", "ranker", "refiner", "gateway", "web", "trainer")
WITH_JAX: Final = frozenset({"encoder", "generator", "decoder", "refiner", "trainer"})
WITH_TORCH: Final = frozenset({"ranker", "trainer"})
JAX_BUILDS: Final = ("cpu", "cuda12", "cuda13", "tpu")
TORCH_BUILDS: Final = ("cpu", "cuda")
COMPILED: Final = ("generator", "decoder")
"""Services whose images can carry programs that were compiled ahead."""
KEPT: Final = (
    *("index-url", "extra-index-url", "find-links", "trusted-host", "no-index"),
    *("proxy", "timeout", "default-timeout", "retries"),
)
"""Options of pip that say where packages come from, and how long to wait for them."""


def main() -> None:
    """Builds the images that are named, or all."""
    options = parse(sys.argv[1:])
    engine = options.engine or next((each for each in ("buildah", "docker") if shutil.which(each)), None)
    if engine is None:
        sys.exit("images: neither buildah nor docker is installed; install one of them")
    configuration = pip_configuration()
    folders = local_folders(configuration)
    with tempfile.TemporaryDirectory() as folder:
        secrets = write_secrets(Path(folder), configuration, folders if engine == "buildah" else {})
        for service in options.services or SERVICES:
            tag = name_of(options, service)
            command = command_of(options, engine, service, tag, secrets, folders)
            print(f"images: building {tag}", flush=True)
            if subprocess.run(command, cwd=ROOT).returncode:
                sys.exit(f"images: {tag} could not be built")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Returns the options; ends with a line if one is invalid."""
    parser = argparse.ArgumentParser(prog="images", description="Builds the images of the services.")
    parser.add_argument(
        "services", nargs="*", metavar="SERVICE", help=f"of {', '.join(SERVICES)}; all by default"
    )
    parser.add_argument(
        "--engine", choices=("buildah", "docker"), help="by default the one that is installed"
    )
    parser.add_argument(
        "--base", default="python:3.11-slim", help="image with Python 3.11 or newer, with venv"
    )
    parser.add_argument("--jax", default="cpu", choices=JAX_BUILDS, help="device of JAX")
    parser.add_argument("--torch", default="cpu", choices=TORCH_BUILDS, help="build of PyTorch")
    parser.add_argument(
        "--compile",
        default="",
        metavar="CHIPS",
        help="compile the programs ahead for chips that need not be there, such as v6e:1x1; with --jax tpu",
    )
    parser.add_argument("--model", default="pictograms", help="model to compile for")
    parser.add_argument("--slots", type=int, default=16, help="slots of the generator to compile for")
    parser.add_argument("--mesh", default="1x1", help="mesh of the generator to compile for")
    parser.add_argument("--repository", default="smalti", help="what the names of the images begin with")
    parser.add_argument("--tag", default=version(), help="tag; the version by default")
    options = parser.parse_args(arguments)
    if unknown := [each for each in options.services if each not in SERVICES]:
        parser.error(f"{unknown[0]} is no service; they are {', '.join(SERVICES)}")
    if options.compile and not (options.services and set(options.services) <= set(COMPILED)):
        parser.error(
            f"--compile: name the services, of {' and '.join(COMPILED)}; others compile nothing ahead"
        )
    if options.compile and not re.fullmatch(r"v\d+[a-z]*:\d+(x\d+){1,2}", options.compile):
        parser.error(f"--compile: {options.compile} must be a kind of TPU and its chips, such as v6e:1x1")
    if options.compile and options.jax != "tpu":
        parser.error("--compile needs --jax tpu")
    return options


def version() -> str:
    """Returns the version of the project, without importing it."""
    text = (ROOT / "smalti" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert found, "smalti/__init__.py has no version"
    return found[1]


def name_of(options: argparse.Namespace, service: str) -> str:
    """Returns the name of an image; one for an accelerator says so in its tag."""
    builds = [options.jax] * (service in WITH_JAX) + [options.torch] * (service in WITH_TORCH)
    suffix = "".join(f"-{build}" for build in builds if build != "cpu")
    if options.compile:
        suffix += f"-{options.compile.replace(':', '-')}"
    return f"{options.repository}/{service}:{options.tag}{suffix}"


def command_of(
    options: argparse.Namespace,
    engine: str,
    service: str,
    tag: str,
    secrets: Mapping[str, Path],
    folders: Mapping[str, Path],
) -> list[str]:
    """Returns the command that builds an image.

    Args:
        options: those of the command line.
        engine: "buildah" or "docker".
        service: the target.
        tag: the name of the image.
        secrets: files of secrets by their id.
        folders: folders of this machine by what pip's configuration calls them.
    """
    epoch = git("log", "-1", "--format=%ct") or "0"
    command = ["buildah", "bud", "--layers", "--format", "docker", "--timestamp", epoch]
    if engine == "docker":
        command = ["docker", "build", "--build-arg", f"SOURCE_DATE_EPOCH={epoch}"]
    arguments = {"BASE": options.base, "JAX": options.jax, "TORCH": options.torch}
    if options.compile:
        arguments |= {"COMPILE": options.compile, "MODEL": options.model}
        if service == "generator":
            arguments |= {"SLOTS": str(options.slots), "MESH": options.mesh}
    for key, value in arguments.items():
        command += ["--build-arg", f"{key}={value}"]
    for key, value in labels(service, options.base).items():
        command += ["--label", f"org.opencontainers.image.{key}={value}"]
    for key, path in secrets.items():
        command += ["--secret", f"id={key},src={path}"]
    if engine == "buildah":
        for path in sorted(set(folders.values())):
            command += ["--volume", f"{path}:{path}:ro"]
    target = f"{service}-compiled" if options.compile else service
    return [*command, "--target", target, "--tag", tag, "--file", str(DOCKERFILE), str(ROOT)]


def labels(service: str, base: str) -> dict[str, str]:
    """Returns the labels of an image, by their names in the OCI specification."""
    found = {
        "title": f"Smalti {service}",
        "description": "DALL·E mini rebuilt as infrastructure",
        "version": version(),
        "licenses": "Apache-2.0",
        "base.name": base,
        "revision": git("rev-parse", "HEAD"),
    }
    return {key: value for key, value in found.items() if value}


def git(*arguments: str) -> str:
    """Returns what git says of the source, or "" where there is no git."""
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def pip_configuration() -> dict[str, str]:
    """Returns pip's options on this machine, by name; those of its environment go before those of its files."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, str] = {}
    for line in sorted(listed.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        found[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    return found


def local_folders(configuration: Mapping[str, str]) -> dict[str, Path]:
    """Returns the folders of this machine in which pip looks, by what its configuration calls them."""
    found = {}
    for option in ("index-url", "extra-index-url", "find-links"):
        for place in configuration.get(option, "").split():
            parts = urlsplit(place)
            if parts.scheme in ("", "file") and (path := Path(unquote(parts.path))).is_dir():
                # The pages of an index link to files beside it.
                found[place] = path if option == "find-links" else path.parent
    return found


def write_secrets(folder: Path, configuration: Mapping[str, str], folders: Iterable[str]) -> dict[str, Path]:
    """Writes pip's configuration for the build, and this machine's authorities if pip has its own; returns the files.

    Args:
        folder: where to write.
        configuration: pip's options here.
        folders: the places on this machine that the build can read.
    """
    lines = ["[global]"]
    for option in KEPT:
        places = configuration.get(option, "").split()
        if kept := [
            each
            for each in places
            if (urlsplit(each).scheme != "file" and each[:1] != "/") or each in folders
        ]:
            lines.append(f"{option} = {' '.join(kept)}")
    secrets = {"pip": folder / "pip.conf"}
    secrets["pip"].write_text("\n".join(lines) + "\n", encoding="utf-8")
    authorities = configuration.get("cert") or os.environ.get("SSL_CERT_FILE")
    if authorities and Path(authorities).is_file():
        secrets["ca"] = Path(authorities)
    return secrets


if __name__ == "__main__":
    main()
