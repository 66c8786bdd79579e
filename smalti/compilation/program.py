"""Programs that are traced and compiled once per machine, not once per process.

`Program` stands for `jax.jit`. If `use_compilation_cache` found a folder, a program is looked up there by what it is
called with: static arguments, shapes, types and shardings, and everything else that the machine code depends on
(`smalti.compilation.target`). Where there is one, the function is not even traced. JAX's own cache would only save the
last of the three steps, tracing, lowering and compiling.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass
from functools import update_wrapper
from hashlib import sha256
from typing import Any, Final, Generic, TypeVar, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding

from smalti.compilation.cache import kept
from smalti.compilation.folder import PrivateFolder
from smalti.compilation.serialized import UnfitProgramError, dump, load
from smalti.compilation.target import target
from smalti.settings import settings

log = logging.getLogger(__name__)

R = TypeVar("R")
Shapes = dict[str, tuple[int, ...]]
Config = TypeVar("Config", bound=Hashable)

PROGRAM_READ: Final = "/smalti/compilation/program_read_duration"
"""The event for a program that was read from the folder, beside JAX's own events (`jax.monitoring`)."""

_NEVER_SECONDS: Final = 1e9


class Program(Generic[R]):
    """A function as a compiled program, which is kept between processes; thread-safe.

    Static arguments must be hashable, and a dataclass, a mesh, or something whose `repr` determines it.
    """

    def __init__(
        self,
        function: Callable[..., R],
        *,
        static_argnums: Sequence[int] = (),
        static_argnames: Sequence[str] = (),
        donate_argnums: Sequence[int] = (),
    ) -> None:
        """Wraps a function; the other arguments are those of `jax.jit`."""
        self._function = function
        self._options: dict[str, Any] = {
            "static_argnums": tuple(static_argnums),
            "static_argnames": tuple(static_argnames),
            "donate_argnums": tuple(donate_argnums),
        }
        self._static_argnums = frozenset(static_argnums)
        self._jitted: Any = jax.jit(function, **self._options)
        self._ready: dict[Hashable, Callable[..., R]] = {}
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self.name = f"{function.__module__}.{function.__qualname__}".removeprefix("smalti.")
        """The function's name, for logs and files."""
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Runs the program; compiles it, or reads it from the folder, when it is called so for the first time."""
        # Without a folder, JAX's own table of programs will do, and is faster.
        if kept() is None and not self._ready:
            return cast("R", self._jitted(*args, **kwargs))
        leaves, tree = jax.tree_util.tree_flatten(self._dynamic(args))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return cast("R", self._jitted(*args, **kwargs))
        return self._compiled(args, kwargs, leaves, tree)(*leaves)

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the program, or reads it from the folder, without running it.

        Args:
            *args: as for a call; arrays may be stood for by `jax.ShapeDtypeStruct`, with a sharding.
            **kwargs: static arguments.
        """
        self._compiled(args, kwargs, *jax.tree_util.tree_flatten(self._dynamic(args)))

    def lower(self, *args: Any, **kwargs: Any) -> jax.stages.Lowered:
        """Traces and lowers the function for some arguments, as `jax.jit` does."""
        return cast("jax.stages.Lowered", self._jitted.lower(*args, **kwargs))

    def clear_cache(self) -> None:
        """Forgets what was compiled or read in this process, as `jax.jit` does; the folder keeps it."""
        self._jitted.clear_cache()
        with self._lock:
            self._ready.clear()

    def _dynamic(self, args: Sequence[Any]) -> list[Any]:
        return [arg for place, arg in enumerate(args) if place not in self._static_argnums]

    def _compiled(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: Sequence[Any], tree: Any
    ) -> Callable[..., R]:
        """Returns the program for some arguments; it takes their leaves."""
        static = tuple(args[place] for place in sorted(self._static_argnums))
        avals = tuple(map(_aval, leaves))
        signature = (static, tuple(sorted(kwargs.items())), tree, avals)
        ready = self._ready.get(signature)
        if ready is not None:
            return ready
        with self._lock:
            lock = self._locks.setdefault(signature, threading.Lock())
        with lock:
            ready = self._ready.get(signature)
            if ready is None:
                key = _key(
                    self.name,
                    _device(leaves),
                    static=static,
                    options={**kwargs, **self._options},
                    tree=str(tree),
                    arguments=avals,
                )
                ready = self._load(key) or self._compile(key, args, kwargs, leaves, tree)
                self._ready[signature] = ready
        # Whoever waited for the lock, or takes a new one, finds the program.
        with self._lock:
            self._locks.pop(signature, None)
        return ready

    def _load(self, key: str) -> Callable[..., R] | None:
        """Reads a program from the folder; returns None if there is none that can be used."""
        began = time.monotonic()
        folder = kept()
        content = None if folder is None else folder.load(f"{self.name}-{key}")
        if content is None:
            return None
        try:
            # Runs whatever the file says, and is safe because nobody else can have written it.
            loaded, out_tree = load(content)
        except UnfitProgramError as error:
            log.warning("the kept program %s does not fit and is made again: %s", self.name, error)
            return None
        seconds = time.monotonic() - began
        jax.monitoring.record_event_duration_secs(PROGRAM_READ, seconds)
        log.info("read the program %s in %.2f s", self.name, seconds)
        return _with_tree(loaded, out_tree)

    def _compile(
        self, key: str, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: Sequence[Any], tree: Any
    ) -> Callable[..., R]:
        """Compiles a program, and writes it into the folder."""
        began = time.monotonic()
        folder = kept()

        # By leaves, since JAX describes arguments and results by trees, whose classes may refuse what is no array.
        out_trees: list[Any] = []

        def flat(*leaves: Any) -> list[Any]:
            dynamic = iter(jax.tree_util.tree_unflatten(tree, leaves))
            statics = self._static_argnums
            result = self._function(
                *(arg if place in statics else next(dynamic) for place, arg in enumerate(args)), **kwargs
            )
            out_leaves, out_tree = jax.tree_util.tree_flatten(result)
            out_trees.append(out_tree)
            return out_leaves

        # The name is part of JAX's own key, and no key must fit: a program that JAX has read from its cache is
        # incomplete when it is written again, and fails when it runs.
        unique = "" if folder is None else f"_{key}_{time.time_ns()}"
        flat.__name__ = f"{getattr(self._function, '__name__', 'program')}{unique}"
        with nullcontext() if folder is None else _unused_cache():
            compiled = jax.jit(flat, donate_argnums=self._donated(args)).lower(*leaves).compile()
        log.info("compiled the program %s in %.2f s", self.name, time.monotonic() - began)
        if folder is not None:
            try:
                self._write(folder, key, compiled, out_trees[0])
            except (OSError, UnfitProgramError) as error:
                log.warning("the program %s cannot be kept: %s", self.name, error)
        return _with_tree(compiled, out_trees[0])

    def _donated(self, args: Sequence[Any]) -> tuple[int, ...]:
        """Returns the places of the donated arguments' leaves."""
        donated: list[int] = []
        start = 0
        for place, arg in enumerate(args):
            if place not in self._static_argnums:
                end = start + len(jax.tree.leaves(arg))
                if place in self._options["donate_argnums"]:
                    donated.extend(range(start, end))
                start = end
        return tuple(donated)

    def _write(self, folder: PrivateFolder, key: str, compiled: jax.stages.Compiled, out_tree: Any) -> None:
        shardings = jax.tree.leaves((compiled.output_shardings, compiled.input_shardings))
        folder.write(f"{self.name}-{key}", dump(compiled, out_tree, _devices(shardings[0])))
        folder.trim(settings().compilation_cache_bytes)


def _with_tree(compiled: Callable[..., Sequence[Any]], tree: Any) -> Callable[..., Any]:
    """Lets a program that returns leaves return what they are the leaves of."""
    return lambda *leaves: jax.tree_util.tree_unflatten(tree, compiled(*leaves))


def program(**options: Any) -> Callable[[Callable[..., R]], Program[R]]:
    """Makes a function a `Program`, as a decorator; the options are those of `Program`."""
    return lambda function: Program(function, **options)


def kept_shapes(function: Callable[[Config], Shapes]) -> Callable[[Config], Shapes]:
    """Lets a function that traces a network to find the shapes of its parameters do so once per machine."""
    known: dict[Config, Shapes] = {}
    name = f"{function.__module__}.{function.__qualname__}".removeprefix("smalti.")

    def shapes(config: Config) -> Shapes:
        if config not in known:
            known[config] = _load_shapes(name, config, function)
        return dict(known[config])

    return update_wrapper(shapes, function)


def _load_shapes(name: str, config: Config, function: Callable[[Config], Shapes]) -> Shapes:
    folder = kept()
    if folder is None:
        return function(config)
    file = f"{name}-{_key(name, jax.devices()[0], config=config)}"
    content = folder.load(file)
    if content is not None:
        return {parameter: tuple(shape) for parameter, shape in json.loads(content).items()}
    traced = function(config)
    try:
        folder.write(file, json.dumps(traced).encode())
    except OSError as error:
        log.warning("the shapes of %s cannot be kept: %r", name, error)
    return traced


_counter = threading.Lock()
_compiling = 0
_before = 0.0


@contextmanager
def _unused_cache() -> Iterator[None]:
    """Keeps JAX's own cache from writing programs that it can never find again, as far as no other thread compiles."""
    global _compiling, _before
    option = "jax_persistent_cache_min_compile_time_secs"
    with _counter:
        if not _compiling:
            _before = jax.config.values[option]
            jax.config.update(option, _NEVER_SECONDS)
        _compiling += 1
    try:
        yield
    finally:
        with _counter:
            _compiling -= 1
            if not _compiling:
                jax.config.update(option, _before)


def _key(name: str, device: jax.Device, **parts: Any) -> str:
    described = {
        "name": name,
        "target": target(device),
        **{part: _describe(each) for part, each in parts.items()},
    }
    return sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def _describe(value: Any) -> Any:
    """Returns a value as JSON that determines it."""
    if isinstance(value, Mesh):
        on: list[Any] = list(value.devices.flat)
        devices = [(device.id, device.device_kind) for device in on]
        return ["mesh", list(value.shape.items()), list(map(str, value.axis_types)), devices]
    if isinstance(value, NamedSharding):
        return ["sharding", _describe(value.mesh), str(value.spec), str(value.memory_kind)]
    if isinstance(value, Sharding):
        ids: list[int] = sorted(device.id for device in _devices(value))
        return [type(value).__name__, ids, str(value.memory_kind)]
    if is_dataclass(value):
        return [
            type(value).__name__,
            {each.name: _describe(getattr(value, each.name)) for each in fields(value)},
        ]
    if isinstance(value, tuple | list):
        return [_describe(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _describe(each) for name, each in value.items()}
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    described = repr(value)
    if " at 0x" in described:
        raise TypeError(
            f"{described} does not determine a program; give a dataclass, or something with a full repr"
        )
    return described


def _aval(leaf: Any) -> Hashable:
    """Returns what the program for an argument depends on."""
    if isinstance(leaf, jax.Array):
        return leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding if leaf.committed else None
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding
    array = np.asarray(leaf)
    return array.shape, array.dtype, not isinstance(leaf, np.ndarray | np.generic), None


def _device(leaves: Sequence[Any]) -> jax.Device:
    """Returns the device, or one of the devices, that a program with these arguments runs on."""
    for leaf in leaves:
        if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None:
            return _devices(leaf.sharding)[0]
        if isinstance(leaf, jax.Array) and leaf.committed:
            return _devices(leaf.sharding)[0]
    return jax.devices()[0]


def _devices(sharding: Sharding) -> list[Any]:
    return (
        list(sharding.mesh.devices.flat) if isinstance(sharding, NamedSharding) else list(sharding.device_set)
    )
