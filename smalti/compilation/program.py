"""Programs that are traced and compiled once per machine, not once per process.

`Program` stands for `jax.jit`. If `use_compilation_cache` found a folder, a program is looked up there by what it is
called with: static arguments, shapes, types and shardings, and everything else that the machine code depends on
(`smalti.compilation.target`). Where there is one, the function is not even traced. JAX's own cache would only save the
last of the three steps, tracing, lowering and compiling. Before that, it is looked up among the programs that were
compiled ahead (`smalti.compilation.bundle`), if the settings name some.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import update_wrapper
from typing import Any, Final, Generic, TypeVar, cast

import jax

from smalti.compilation.ahead import AbsentArray, Ahead, Compiled, Memory, ahead, ids_of
from smalti.compilation.cache import kept, made_ahead
from smalti.compilation.folder import PrivateFolder
from smalti.compilation.key import Call, aval_of, describe_call, device_of, devices_of, machine_key
from smalti.compilation.serialized import UnfitProgramError, dump, load
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
        tpu_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Wraps a function.

        Args:
            function: the function.
            static_argnums: as of `jax.jit`, like the next two.
            static_argnames: as of `jax.jit`.
            donate_argnums: as of `jax.jit`.
            tpu_options: options of the compiler for TPUs; those for other devices do not know them.
        """
        self._function = function
        self._tpu_options = dict(tpu_options or {})
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
        # Without a folder, JAX's own table of programs will do, and is faster; but it has no options for TPUs alone.
        plain = kept() is None and made_ahead() is None and ahead() is None and not self._tpu_options
        if plain and not self._ready:
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

    def shape(self, *args: Any, **kwargs: Any) -> R:
        """Returns what stands for the result, `jax.ShapeDtypeStruct`, without compiling anything."""
        return cast("R", self._jitted.eval_shape(*args, **kwargs))

    def compiler_options(self, platform: str) -> dict[str, Any]:
        """Returns the options of the compiler for a platform: `cpu`, `gpu` or `tpu`."""
        return dict(self._tpu_options) if platform == "tpu" else {}

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
        avals = tuple(map(aval_of, leaves))
        signature = (ahead(), static, tuple(sorted(kwargs.items())), tree, avals)
        ready = self._ready.get(signature)
        if ready is not None:
            return ready
        with self._lock:
            lock = self._locks.setdefault(signature, threading.Lock())
        with lock:
            ready = self._ready.get(signature)
            if ready is None:
                ready = self._ready[signature] = self._find(args, kwargs, leaves, tree)
        # Whoever waited for the lock, or takes a new one, finds the program.
        with self._lock:
            self._locks.pop(signature, None)
        return ready

    def _find(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: Sequence[Any], tree: Any
    ) -> Callable[..., R]:
        """Returns the program for some arguments, from where it is found first."""
        if (given := ahead()) is not None:
            return self._compile_ahead(given, args, kwargs, leaves, tree)
        key = machine_key(
            self.name,
            device_of(leaves),
            static=tuple(args[place] for place in sorted(self._static_argnums)),
            options={**kwargs, **self._options, **self.compiler_options(device_of(leaves).platform)},
            tree=str(tree),
            arguments=tuple(map(aval_of, leaves)),
        )
        return (
            self._load_ahead(args, kwargs)
            or self._load(key)
            or self._compile(key, args, kwargs, leaves, tree)
        )

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        return describe_call(
            self._function,
            args=args,
            kwargs=kwargs,
            static=self._static_argnums,
            donated=self._options["donate_argnums"],
        )

    def _load_ahead(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., R] | None:
        """Reads a program that was compiled ahead; returns None if there is none that can be used."""
        began = time.monotonic()
        found = made_ahead()
        if found is None:
            return None
        try:
            loaded, out_tree = found.load(self.name, self._call(args, kwargs))
        except UnfitProgramError as error:
            log.warning("the program %s is not loaded from %s: %s", self.name, found.path, error)
            return None
        self._report_read(began, f"{found.path}")
        return _with_tree(loaded, out_tree)

    def _report_read(self, began: float, origin: str) -> None:
        seconds = time.monotonic() - began
        jax.monitoring.record_event_duration_secs(PROGRAM_READ, seconds)
        log.info("read the program %s from %s in %.2f s", self.name, origin, seconds)

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
        self._report_read(began, "the cache")
        return _with_tree(loaded, out_tree)

    def _compile(
        self, key: str, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: Sequence[Any], tree: Any
    ) -> Callable[..., R]:
        """Compiles a program, and writes it into the folder."""
        folder = kept()
        compiled, out_tree, _ = self._lower_and_compile(
            key, args, kwargs, leaves, tree, platform=device_of(leaves).platform, unique=folder is not None
        )
        if folder is not None:
            try:
                self._write(folder, key, compiled, out_tree)
            except (OSError, UnfitProgramError) as error:
                log.warning("the program %s cannot be kept: %s", self.name, error)
        return _with_tree(compiled, out_tree)

    def _compile_ahead(
        self, given: Ahead, args: Sequence[Any], kwargs: Mapping[str, Any], leaves: Sequence[Any], tree: Any
    ) -> Callable[..., R]:
        """Compiles a program for devices that need not be there; returns what takes its place here."""
        everywhere = given.everywhere(args, leaves)
        absent = [given.stand_in(leaf, everywhere) for leaf in leaves]
        compiled, out_tree, seconds = self._lower_and_compile(
            "", args, kwargs, absent, tree, platform=given.devices[0].platform, unique=True
        )
        shardings = jax.tree.leaves((compiled.output_shardings, compiled.input_shardings))
        given.keep(
            Compiled(
                name=self.name,
                call=self._call(args, kwargs),
                compiled=compiled,
                tree=out_tree,
                devices=ids_of(shardings),
                memory=Memory.of(compiled),
                seconds=seconds,
            )
        )
        results = [
            AbsentArray(each.shape, each.dtype, sharding=sharding)
            for each, sharding in zip(
                jax.tree.leaves(compiled.out_info), jax.tree.leaves(compiled.output_shardings), strict=True
            )
        ]
        return _with_tree(lambda *_: results, out_tree)

    def _lower_and_compile(
        self,
        key: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        leaves: Sequence[Any],
        tree: Any,
        *,
        platform: str,
        unique: bool,
    ) -> tuple[jax.stages.Compiled, Any, float]:
        """Returns a compiled program, the tree of its results, and the seconds that it took.

        With `unique`, JAX's own cache neither gives nor keeps it.
        """
        began = time.monotonic()
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
        mark = f"_{key}_{time.time_ns()}" if unique else ""
        flat.__name__ = f"{getattr(self._function, '__name__', 'program')}{mark}"
        with _unused_cache() if unique else nullcontext():
            lowered = jax.jit(flat, donate_argnums=self._donated(args)).lower(*leaves)
            compiled = lowered.compile(compiler_options=self.compiler_options(platform) or None)
        seconds = time.monotonic() - began
        log.info("compiled the program %s in %.2f s", self.name, seconds)
        return compiled, out_trees[0], seconds

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
        folder.write(f"{self.name}-{key}", dump(compiled, out_tree, devices_of(shardings[0])))
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
    if (given := ahead()) is not None:
        traced = function(config)
        given.keep_shapes(name, config, traced)
        return traced
    if (found := made_ahead()) is not None and (shapes := found.shapes(name, config)) is not None:
        return shapes
    folder = kept()
    if folder is None:
        return function(config)
    file = f"{name}-{machine_key(name, jax.devices()[0], config=config)}"
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
