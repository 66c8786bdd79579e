"""The house: imports run one way, through the doors, and no room is too large."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest

from harness.imports import Import, Module, read_module, read_package
from harness.paths import ROOT

MAX_LINES = 400
MAX_MODULES = 15

OUTSIDE = ("benchmarks", "faults", "harness", "scripts", "tests")
"""Folders outside the wheel; their modules are as short as those of the house."""
GENERATED = "smalti.v1"
MIGRATIONS = "smalti.services.gateway.database.migrations"

# The floors of each building, lowest first. A room may import from the floors below its own; rooms of one floor do not
# know each other.
FLOORS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "smalti": (
        ("errors", "v1"),
        ("foreign_text",),
        ("disclosure", "entrance", "files", "starting", "validation"),
        ("outputs", "parameters", "policy", "selection", "settings", "webhooks"),
        ("devices", "network", "picture_files"),
        ("pictures", "telemetry"),
        ("checkpoints", "compilation", "storage"),
        ("messages", "models", "text"),
        ("batches", "registry", "results"),
        ("engines",),
        ("pipeline", "queue", "rpc", "shards"),
        ("client", "service"),
        ("testing",),
        ("services", "training", "up"),
        ("doctor",),
        ("cli",),
        ("__main__",),
    ),
    "smalti.batches": (
        ("duplicates", "layout", "places", "reading"),
        ("prompts",),
        ("checking", "manifest", "tars"),
        ("finishing", "openai"),
        ("planning",),
    ),
    "smalti.engines": (
        ("encoding", "decoder", "ranker"),
        ("encoder", "refiner"),
        ("generator",),
        ("ahead", "initial_image"),
    ),
    "smalti.services": (("decoder", "encoder", "gateway", "generator", "ranker", "refiner", "web"),),
    "smalti.services.gateway": (
        ("settings",),
        ("database", "policy"),
        ("identity", "models", "webhooks"),
        ("jobs",),
        ("files",),
        ("work",),
        ("batches",),
        ("gateway",),
        ("metrics",),
        ("api",),
        ("service",),
        ("__main__",),
    ),
    "smalti.services.web": (
        ("failures", "settings"),
        ("gateway", "pictures"),
        ("jobs", "limits"),
        ("context",),
        ("native", "openai", "operations", "page"),
        ("observer",),
        ("app",),
        ("service",),
        ("__main__",),
    ),
    "smalti.training": (
        ("checked_files", "prefetching", "similarity"),
        ("data",),
        ("batches",),
        ("loop",),
        ("judge", "losses"),
        ("trainers",),
        ("evaluation", "refiner_export"),
        ("export",),
    ),
}


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    return read_package(ROOT / "smalti")


def arrows_up(house: Mapping[str, Module]) -> list[str]:
    """Returns the imports that run to the same floor or a higher one."""
    wrong = []
    for building, floors in FLOORS.items():
        floor_of = {room: floor for floor, rooms in enumerate(floors) for room in rooms}
        for each in every_import(house):
            importer, imported = room_in(building, each.importer), room_in(building, each.module)
            if importer is None or imported is None or importer == imported:
                continue
            if not floor_of[imported] < floor_of[importer]:
                wrong.append(f"{each.importer}:{each.line} imports {each.module}")
    return wrong


def cycles(house: Mapping[str, Module]) -> list[str]:
    """Returns the modules of a cycle; nothing if there is none."""
    graph = {name: {each.module for each in module.imports} - {name} for name, module in house.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def imports_past_a_door(house: Mapping[str, Module]) -> list[str]:
    """Returns the imports from other rooms of names that are not in `__all__`."""
    wrong = []
    for each in every_import(house):
        if GENERATED in each.module:
            continue
        path = each.module.split(".") + ([each.name] if each.name else [])
        for depth in range(1, len(path)):
            package, name = ".".join(path[:depth]), path[depth]
            if package not in house or not house[package].is_package or package == "smalti":
                continue
            inside = each.importer == package or each.importer.startswith(f"{package}.")
            if not inside and name not in (house[package].door or ()):
                wrong.append(f"{each.importer}:{each.line}: {package} does not name {name}")
    return wrong


def every_import(house: Mapping[str, Module]) -> Iterator[Import]:
    for module in house.values():
        yield from module.imports


def by_kind(name: str) -> tuple[int, str]:
    """Sorts names as the linter does: constants, classes, then functions and modules."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2), name


def room_in(building: str, module: str) -> str | None:
    """Returns the room of a building that contains a module; None for the building itself and modules outside."""
    return module.removeprefix(f"{building}.").split(".")[0] if module.startswith(f"{building}.") else None


def test_every_room_has_its_floor(house: Mapping[str, Module]) -> None:
    for building, floors in FLOORS.items():
        placed = [room for rooms in floors for room in rooms]
        there = {room for name in house if (room := room_in(building, name)) is not None}
        assert sorted(placed) == sorted(there), building


def test_imports_run_downwards(house: Mapping[str, Module]) -> None:
    assert arrows_up(house) == []


def test_there_are_no_import_cycles(house: Mapping[str, Module]) -> None:
    assert cycles(house) == []


def test_rooms_are_entered_through_their_doors(house: Mapping[str, Module]) -> None:
    assert imports_past_a_door(house) == []


def test_every_room_has_a_door_that_is_sorted_and_opens(house: Mapping[str, Module]) -> None:
    for name, module in house.items():
        if not module.is_package or name.startswith((GENERATED, MIGRATIONS)):
            continue
        assert module.door is not None, f"{name} has no __all__"
        assert list(module.door) == sorted(module.door, key=by_kind), name
        for exported in module.door:
            if f"{name}.{exported}" not in house:
                assert hasattr(importlib.import_module(name), exported), f"{name} has no {exported}"


def test_no_module_and_no_room_is_too_large(house: Mapping[str, Module]) -> None:
    large = [name for name, module in house.items() if module.lines > MAX_LINES and GENERATED not in name]
    assert large == []
    for room in OUTSIDE:
        for file in (ROOT / room).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= MAX_LINES, file
    for name, module in house.items():
        if module.is_package and name not in ("smalti", GENERATED):
            prefix = f"{name}."
            rooms = {other.removeprefix(prefix).split(".")[0] for other in house if other.startswith(prefix)}
            assert len(rooms) <= MAX_MODULES, name


@pytest.mark.parametrize(
    ("module", "line", "find"),
    [
        ("storage.store", "from smalti.queue import Publisher", arrows_up),
        ("storage.store", "from smalti.checkpoints import loading", arrows_up),
        ("engines.encoder", "from smalti.engines.generator.engine import GeneratorEngine", arrows_up),
        ("registry.manifest", "from smalti.registry.folder import ModelFolder", cycles),
        ("services.encoder.handler", "from smalti.services.decoder import handler", arrows_up),
        ("cli.drawing.generate", "from smalti.queue.worker import Worker", imports_past_a_door),
    ],
)
def test_wrong_arrow_is_found(
    house: Mapping[str, Module], module: str, line: str, find: Callable[[Mapping[str, Module]], list[str]]
) -> None:
    name = f"smalti.{module}"
    path = house[name].path
    source = f"{path.read_text(encoding='utf-8')}\n\ndef wrong() -> None:\n    {line}\n"
    assert find({**house, name: read_module(name, path, source, house.keys())}) != []
