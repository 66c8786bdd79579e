"""Runs images as a cluster would, and says what is wrong with them: `python -m scripts.check_image IMAGE ...`.

The root is read-only, the user is a number without rights, and there is no network. What an image must do follows from
its service, the last part of its name. A service with a store must become healthy, stop being so when the store cannot
be written, and end with status 0 when it is told to. The web service must say that its gateway is missing, and end like
that. The trainer must train a network for some steps, with a volume. None may hold a compiler, pip, or packages for it.
Uses the standard library only; podman or docker must be there.
"""

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from scripts.images import ROOT, SERVICES

# podman's own default needs systemd.
ENGINES: Final = (("podman", "--cgroup-manager", "cgroupfs"), ("docker",))
READY_SECONDS: Final = 400.0
"""A generator compiles its programs first."""
UNHEALTHY_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30

LOCKED_UP: Final = (
    *("--read-only", "--tmpfs", "/tmp", "--network", "none"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges"),
    # podman's defaults are more than root may set on some machines.
    *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"),
    # The check asks for the health itself; podman's timer for it needs systemd.
    "--no-healthcheck",
)
SETTINGS: Final = ("--env", "SMALTI_PLAINTEXT=1", "--env", "SMALTI_AUTH=none")
PROBE: Final = ("python", "-m", "smalti.doctor.probe")
STORE: Final = "/data/smalti/store"
MISSING: Final = ("cc", "gcc", "c++", "g++", "ld", "as", "make", "pip", "pip3")
"""What an image has no use for: a compiler, and what installs."""
LEFT_BEHIND: Final = (
    r"find / -xdev \( -name '*.whl' -o -path '*/.cache/pip' -o -path '*/site-packages/pip' \) -print -quit"
)

SAMPLES: Final = "/samples"
"""Where the folder `tests/data` is mounted for the trainer."""
PICTURES: Final = """
import random
from pathlib import Path
from PIL import Image

folder = Path("/data/pictures")
folder.mkdir()
rows = ["image,caption"]
for number in range(24):
    picture = Image.frombytes("RGB", (8, 8), random.Random(number).randbytes(192))
    picture.resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    rows.append(f"{number}.png,pattern {number}")
(folder / "pictures.csv").write_text("\\n".join(rows))
Path("/data/import.toml").write_text("validation = 0.3")
"""
TRAINING: Final = (
    ("python", "-c", PICTURES),
    ("smalti", "data", "import", "/data/pictures/pictures.csv", "/data/set", "--config", "/data/import.toml"),
    (
        *("smalti", "train", "tokenizer", "--config", f"{SAMPLES}/runs/tokenizer.toml"),
        *("--data", "/data/set", "--out", "/data/run"),
    ),
)


def main() -> None:
    """Checks the images; ends with a line if something is wrong with one."""
    found = next((each for each in ENGINES if shutil.which(each[0])), None)
    if found is None:
        sys.exit("check_image: neither podman nor docker is installed; install one of them")
    if len(sys.argv) < 2:
        sys.exit("check_image: must be called with names of images")
    for image in sys.argv[1:]:
        if problem := find_problem(found, image):
            sys.exit(f"check_image: {image}: {problem}")
        print(
            f"check_image: {image} runs read-only as a user without rights, {HOLDS[kind_of(image)]}",
            flush=True,
        )


def kind_of(image: str) -> str:
    """Returns what kind of service an image holds: "web", "trainer", or "store" for the others.

    Ends with a line if its name is that of no service.
    """
    service = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
    if service not in SERVICES:
        sys.exit(f"check_image: {image}: its name must end with one of {', '.join(SERVICES)}, and a tag")
    return service if service in CHECKS else "store"


def find_problem(engine: Sequence[str], image: str) -> str:
    """Returns what is wrong with an image; empty if nothing is."""
    kind = kind_of(image)
    inspected = run(*engine, "image", "inspect", image)
    if inspected.returncode:
        return "the engine does not have it; build it with make images"
    (facts,) = json.loads(inspected.stdout)
    user = facts.get("User") or facts["Config"].get("User", "")
    if not user.split(":")[0].isdecimal() or user.startswith("0"):
        return f"its user is {user or 'not set'}; must be a number other than 0"
    with running(engine, image, kind) as container:
        return find_superfluous(engine, container) or CHECKS[kind](engine, container)


def find_superfluous(engine: Sequence[str], container: str) -> str:
    """Returns what a container could do or holds that it must not; empty if there is nothing."""
    if run(*engine, "exec", container, "touch", "/opt/smalti/file").returncode == 0:
        return "can write to its root"
    for program in MISSING:
        if run(*engine, "exec", container, "sh", "-c", f"command -v {program}").returncode == 0:
            return f"holds {program}"
    if left := run(*engine, "exec", container, "sh", "-c", LEFT_BEHIND).stdout.strip():
        return f"holds {left}"
    return ""


def check_store(engine: Sequence[str], container: str) -> str:
    """Returns what is wrong with a service that has a store; empty if nothing is."""
    if not wait_for(engine, container, ("rpc",), status=0, seconds=READY_SECONDS):
        return f"is not healthy after {READY_SECONDS:.0f} s"
    run(*engine, "exec", container, "sh", "-c", f"rm -r {STORE} && touch {STORE}")
    if not wait_for(engine, container, ("rpc",), status=1, seconds=UNHEALTHY_SECONDS):
        return f"says that it is healthy, {UNHEALTHY_SECONDS:.0f} s after its store has become a file"
    return stop(engine, container)


def check_web(engine: Sequence[str], container: str) -> str:
    """Returns what is wrong with the web service; empty if nothing is."""
    if not wait_for(engine, container, ("web",), status=1, seconds=READY_SECONDS, says="503"):
        return f"does not say within {READY_SECONDS:.0f} s that it has no gateway"
    return stop(engine, container)


def check_trainer(engine: Sequence[str], container: str) -> str:
    """Returns what is wrong with the trainer; empty if nothing is."""
    for command in TRAINING:
        done = run(*engine, "exec", container, *command)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            return f"{' '.join(command[:3])} failed: {lines[-1]}"
    return ""


def stop(engine: Sequence[str], container: str) -> str:
    """Tells a container to stop; returns what is wrong with how it ends, empty if nothing is."""
    run(*engine, "stop", "--time", str(STOP_SECONDS), container)
    (state,) = json.loads(run(*engine, "container", "inspect", container).stdout)
    code = state["State"]["ExitCode"]
    return f"ends with status {code}" if code else ""


CHECKS: Final[Mapping[str, Callable[[Sequence[str], str], str]]] = {
    "store": check_store,
    "web": check_web,
    "trainer": check_trainer,
}
HOLDS: Final = {
    "store": "and is healthy only with its store",
    "web": "and says that it has no gateway",
    "trainer": "and trains with a volume",
}


@contextmanager
def running(engine: Sequence[str], image: str, kind: str) -> Iterator[str]:
    """Runs the image with an empty volume while the block runs; yields the container's name."""
    name = f"smalti-check-{uuid.uuid4().hex[:12]}"
    options = [*LOCKED_UP, "--volume", f"{name}:/data", *SETTINGS]
    command: tuple[str, ...] = ()
    if kind == "trainer":
        # Its own command ends at once.
        options += ["--volume", f"{ROOT / 'tests' / 'data'}:{SAMPLES}:ro"]
        command = ("sleep", "infinity")
    started = run(*engine, "run", "--detach", "--name", name, *options, image, *command)
    try:
        if started.returncode:
            sys.exit(f"check_image: {image} cannot be started: {started.stderr.strip()}")
        yield name
    except BaseException:
        print(run(*engine, "logs", name).stderr, file=sys.stderr)
        raise
    finally:
        run(*engine, "rm", "--force", name)
        run(*engine, "volume", "rm", "--force", name)


def wait_for(
    engine: Sequence[str], container: str, what: Sequence[str], *, status: int, seconds: float, says: str = ""
) -> bool:
    """Asks for the container's health until the answer is the expected one; returns whether it was in time.

    Args:
        engine: podman or docker.
        container: its name.
        what: what the probe asks for.
        status: the exit status of the probe.
        seconds: how long to wait.
        says: what its line must hold.
    """
    deadline = time.monotonic() + seconds
    while True:
        done = run(*engine, "exec", container, *PROBE, *what)
        if done.returncode == status and says in done.stderr:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
