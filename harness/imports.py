"""The imports of a package as a graph, read from its source without running it."""

import ast
import os
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Import:
    """One name that a module imports."""

    importer: str
    """The importing module."""
    module: str
    """The module that is imported, or that the name is imported from."""
    name: str | None
    """The name; None if the module itself is imported."""
    line: int


@dataclass(frozen=True, kw_only=True)
class Module:
    """A module of the package."""

    name: str
    path: Path
    is_package: bool
    imports: tuple[Import, ...]
    """Imports of modules of the same package, also those inside functions and under `TYPE_CHECKING`."""
    door: tuple[str, ...] | None
    """The names in `__all__`; None if there is none."""
    lines: int


def read_package(folder: Path) -> dict[str, Module]:
    """Reads all modules of a package by their full names; links to folders are followed."""
    files = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.endswith(".py"):
                path = Path(parent) / name
                parts = path.relative_to(folder.parent).with_suffix("").parts
                files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {
        name: read_module(name, path, path.read_text(encoding="utf-8"), files.keys())
        for name, path in sorted(files.items())
    }


def read_module(name: str, path: Path, source: str, modules: Set[str]) -> Module:
    """Reads one module of a package from its source, given the names of all modules."""
    tree = ast.parse(source)
    imports: list[Import] = []
    found: list[tuple[str, str | None]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the module in full"
            assert node.module is not None
            found = [_resolve(node.module, alias.name, modules) for alias in node.names]
        else:
            continue
        imports += [
            Import(importer=name, module=module, name=imported, line=node.lineno)
            for module, imported in found
            if module in modules
        ]
    return Module(
        name=name,
        path=path,
        is_package=path.name == "__init__.py",
        imports=tuple(imports),
        door=_door(tree),
        lines=source.count("\n"),
    )


def _resolve(module: str, name: str, modules: Set[str]) -> tuple[str, str | None]:
    """Tells `from package import module` from `from module import name`."""
    return (f"{module}.{name}", None) if f"{module}.{name}" in modules else (module, name)


def _door(tree: ast.Module) -> tuple[str, ...] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names, value = [each.id for each in node.targets if isinstance(each, ast.Name)], node.value
            if names == ["__all__"]:
                return tuple(ast.literal_eval(value))
    return None
