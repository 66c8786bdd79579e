"""What the machine offers: variables, folders, models, and the device that computes."""

import difflib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from smalti.devices import PROBE_SECONDS, probe, run_apart
from smalti.doctor.finding import Finding, State, ask
from smalti.entrance import variables
from smalti.errors import InvalidInputError
from smalti.registry import library
from smalti.settings import PREFIX, EnvironmentSettings, data_folder, home_folder, read_settings, settings

KINDS: Final = {
    "smalti.settings": "Settings",
    "smalti.rpc.settings": "RpcSettings",
    "smalti.service.settings": "ServiceSettings",
    "smalti.queue.settings": "BrokerSettings",
    "smalti.messages": "MessageSettings",
    "smalti.storage.settings": "StoreSettings",
    "smalti.services.gateway.settings": "GatewaySettings",
    "smalti.services.generator.settings": "GroupSettings",
    "smalti.services.web.settings": "WebSettings",
    "smalti.telemetry.settings": "LogSettings MetricsSettings",
}
"""The modules and classes of all settings; a module whose libraries are not installed is left out."""
OTHERS: Final = (f"{PREFIX}FAILPOINTS", f"{PREFIX}FAILPOINTS_STATE")
"""Variables that are no settings."""

_CACHE: Final = """
import json, warnings
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    from smalti.compilation import use_compilation_cache
    use_compilation_cache()
print(json.dumps([str(each.message) for each in warned if each.category.__name__ == "SmaltiWarning"]))
"""


def examine_machine() -> Iterator[Finding]:
    """Yields what was found about this machine, the quick questions first."""
    yield from _foreign_variables()
    yield from _own_variables()
    yield ask("home", _home)
    yield ask("data folder", lambda: _writable("XDG_DATA_HOME", data_folder("XDG_DATA_HOME")))
    yield ask("temporary files", _temporary)
    yield ask("model", _model)
    device = _device()
    yield device
    if device.state is State.GOOD:
        yield _cache()


def _foreign_variables() -> Iterator[Finding]:
    for each in variables.ignored():
        yield Finding(subject="environment", state=State.NOTE, text=str(each))


def _own_variables() -> Iterator[Finding]:
    """Yields settings that are invalid, and variables that are almost settings."""
    known: set[str] = set(OTHERS)
    whole = True
    for module, names in KINDS.items():
        try:
            imported = import_module(module)
        except ModuleNotFoundError:
            whole = False
            continue
        for name in names.split():
            kind: type[EnvironmentSettings] = getattr(imported, name)
            known |= {f"{kind.model_config['env_prefix']}{field}".upper() for field in kind.model_fields}
            found = ask("settings", lambda kind=kind: str(read_settings(kind)))  # type: ignore[misc]
            # What lacks a default for want of a home matters only to what needs it, which says so itself.
            if found.state is State.FAILS and found.text.partition(":")[0] in os.environ:
                yield found
    given = sorted(name for name in os.environ if name.startswith(PREFIX))
    for name in given if whole else ():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            yield Finding(subject="settings", state=State.NOTE, text=f"{name} is no setting of Smalti{meant}")


def _home() -> str:
    home = home_folder()
    if (home is None or not os.path.isdir(home)) and all(  # noqa: PTH112
        os.environ.get(name) for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME")
    ):
        return "none, and none is needed: XDG_DATA_HOME and XDG_CACHE_HOME are set"
    if home is None:
        raise InvalidInputError(
            "HOME",
            "is not set, and this user has no home; set HOME, or XDG_DATA_HOME and XDG_CACHE_HOME, to a folder",
        )
    if not os.path.isdir(home):  # noqa: PTH112
        raise InvalidInputError("HOME", f"{home} is not there; set HOME to a folder that is")
    return str(home)


def _writable(variable: str, folder: Path) -> str:
    """Returns a folder in which files can be written, or which can be created."""
    # Unlike those of `Path`, these do not raise below a folder that this user may not search.
    there = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
    if not os.path.isdir(there):  # noqa: PTH112
        raise InvalidInputError(variable, f"{there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidInputError(
            variable, f"{there} cannot be written by this user; name another folder with XDG_DATA_HOME"
        )
    return str(folder)


def _temporary() -> str:
    try:
        with tempfile.NamedTemporaryFile(prefix="smalti-") as file:
            file.write(b"written")
            file.flush()
            return str(Path(file.name).parent)
    except OSError as error:
        raise InvalidInputError(
            "TMPDIR",
            f"no temporary file can be written ({error.strerror or error}); set it to a folder with space",
        ) from None


def _model() -> str:
    folder = library.find()
    return f"{folder.name}, {folder.revision[:19]}"


def _device() -> Finding:
    if find_spec("jax") is None:
        text = "JAX is not installed; to draw in this process: pip install 'smalti[local]'"
        return Finding(subject="device", state=State.NOTE, text=text)
    return ask("device", probe)


def _cache() -> Finding:
    """Asks in a process of its own, since JAX takes seconds to import."""
    subject = "compiled programs"
    try:
        done = run_apart(_CACHE)
    except subprocess.TimeoutExpired:
        text = f"the folder does not answer within {PROBE_SECONDS:.0f} s"
        return Finding(subject=subject, state=State.NOTE, text=text)
    if done.returncode == 0:
        said = json.loads(done.stdout.strip().splitlines()[-1])
    else:
        said = [done.stderr.strip()[-200:] or f"its process ended with {done.returncode}"]
    if said:
        return Finding(subject=subject, state=State.NOTE, text=" ".join(said[0].split()))
    return Finding(subject=subject, state=State.GOOD, text=str(settings().compilation_cache or "not kept"))
