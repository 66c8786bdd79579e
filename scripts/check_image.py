"""Runs the gateway's image as a cluster would, and says what is wrong with it: `python -m scripts.check_image IMAGE`.

The root is read-only, the user is a number without rights, and there is no network. The gateway must become healthy,
stop being so when its store cannot be written, hold neither a compiler nor pip, and end with status 0 when it is told
to. Uses the standard library only; podman or docker must be there.
"""

import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

# podman's own default needs systemd.
ENGINES: Final = (("podman", "--cgroup-manager", "cgroupfs"), ("docker",))
READY_SECONDS: Final = 120.0
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
PROBE: Final = ("python", "-m", "smalti.doctor.probe", "rpc")
STORE: Final = "/data/smalti/store"
MISSING: Final = ("cc", "gcc", "c++", "g++", "ld", "as", "make", "pip", "pip3")
"""What an image has no use for: a compiler, and what installs."""


def main() -> None:
    """Checks the image; ends with a line if something is wrong."""
    if len(sys.argv) != 2:
        sys.exit("check_image: must be called with the name of an image")
    found = next((each for each in ENGINES if shutil.which(each[0])), None)
    if found is None:
        sys.exit("check_image: neither podman nor docker is installed; install one of them")
    problem = find_problem(found, sys.argv[1])
    if problem:
        sys.exit(f"check_image: {sys.argv[1]}: {problem}")
    print(
        f"check_image: {sys.argv[1]} runs read-only as a user without rights, and is healthy only with its store"
    )


def find_problem(engine: Sequence[str], image: str) -> str:
    """Returns what is wrong with an image; empty if nothing is."""
    (facts,) = json.loads(run(*engine, "image", "inspect", image).stdout)
    user = facts.get("User") or facts["Config"].get("User", "")
    if not user.split(":")[0].isdecimal() or user.startswith("0"):
        return f"its user is {user or 'not set'}; must be a number other than 0"
    with running(engine, image) as container:
        if not wait_for(engine, container, status=0, seconds=READY_SECONDS):
            return f"is not healthy after {READY_SECONDS:.0f} s"
        if run(*engine, "exec", container, "touch", "/opt/smalti/file").returncode == 0:
            return "can write to its root"
        for program in MISSING:
            if run(*engine, "exec", container, "sh", "-c", f"command -v {program}").returncode == 0:
                return f"holds {program}"
        run(*engine, "exec", container, "sh", "-c", f"rm -r {STORE} && touch {STORE}")
        if not wait_for(engine, container, status=1, seconds=UNHEALTHY_SECONDS):
            return f"says that it is healthy, {UNHEALTHY_SECONDS:.0f} s after its store has become a file"
        run(*engine, "stop", "--time", str(STOP_SECONDS), container)
        (state,) = json.loads(run(*engine, "container", "inspect", container).stdout)
        if code := state["State"]["ExitCode"]:
            return f"ends with status {code}"
    return ""


@contextmanager
def running(engine: Sequence[str], image: str) -> Iterator[str]:
    """Runs the image with an empty volume while the block runs; yields the container's name."""
    name = f"smalti-check-{uuid.uuid4().hex[:12]}"
    options = (*LOCKED_UP, "--volume", f"{name}:/data", *SETTINGS)
    started = run(*engine, "run", "--detach", "--name", name, *options, image)
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


def wait_for(engine: Sequence[str], container: str, *, status: int, seconds: float) -> bool:
    """Asks for the container's health until the exit status is the given one; returns whether it was in time."""
    deadline = time.monotonic() + seconds
    while run(*engine, "exec", container, *PROBE).returncode != status:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
