"""`smalti compile`: compiles a model's programs ahead, also for devices that are not there."""

import logging
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal

from smalti.cli.extras import needs_extra
from smalti.cli.operations import tables
from smalti.devices import check_flags
from smalti.errors import InvalidInputError
from smalti.outputs import check_folder, whole_folder
from smalti.registry import library
from smalti.registry.spec import ModelSpec

__all__ = ["register"]

STAGES = ("encoder", "generator", "decoder")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("compile")(compile_)


def compile_(
    devices: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="DEVICES",
            help="What to compile for: cpu or gpu, those of this machine, or chips that need not be there: v5e:2x2.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    model: Annotated[
        str | None,
        typer.Option(help="Name from `smalti models`, or a folder. [default: the shipped one]"),
    ] = None,
    stages: Annotated[
        list[str] | None,
        typer.Option(
            "--stage", help="encoder, generator or decoder; repeat for several. [default: all three]"
        ),
    ] = None,
    slots: Annotated[
        int, typer.Option(min=1, max=1024, help="Slots of the generator: SMALTI_SERVICE_SLOTS.")
    ] = 16,
    mesh: Annotated[
        str | None,
        typer.Option(help="Devices of the generator. [default: SMALTI_GENERATOR_MESH, else 1x1]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a folder that this command has made.")
    ] = False,
) -> None:
    """Compile a model's programs ahead, so that services start at once; on a machine without the chips, too."""
    chosen = tuple(dict.fromkeys(stages or STAGES))
    for each in chosen:
        if each not in STAGES:
            raise InvalidInputError("stage", f"{each!r} must be one of {', '.join(STAGES)}")
    folder = library.find(model)
    spec = ModelSpec.load(folder)
    inputs = {"model": folder.path}
    check_folder(out, inputs=inputs, overwrite=overwrite)
    with needs_extra("local"):
        check_flags()
        from smalti.compilation import Ahead, BundleWriter, compiling_ahead, find_topology
        from smalti.engines.ahead import starts
    began = time.monotonic()
    # JAX says much that helps nobody here, such as that this machine has no TPU.
    logging.getLogger("jax").setLevel(logging.ERROR)
    found = find_topology(devices)
    with whole_folder(out, inputs=inputs, overwrite=overwrite) as place:
        writer = BundleWriter(place, found[0])
        with compiling_ahead(Ahead(devices=found, keep=writer.keep, keep_shapes=writer.keep_shapes)):
            by_stage = starts(spec, slots=slots, mesh=mesh)
            for each in chosen:
                with Console(stderr=True).status(f"Compiling the {each} for {devices} ..."):
                    by_stage[each]()
        digest = writer.finish(
            {
                "model": folder.name,
                "revision": folder.revision,
                "devices": devices,
                "stages": list(chosen),
                "slots": slots,
                "mesh": mesh,
            }
        )
    tables.print_table(
        ("program", "seconds", "file", "memory of a device"),
        (
            (each.name, f"{each.seconds:.1f}", decimal(each.size), decimal(sum((each.memory or {}).values())))
            for each in sorted(writer.programs, key=lambda each: -each.seconds)
        ),
    )
    count, seconds = len(writer.programs), time.monotonic() - began
    print(
        f"{count} programs of {folder.name} for {devices}, made in {seconds:.0f} s. A service that starts with"
    )
    print(f"SMALTI_COMPILED={out.absolute()}")
    print(f"SMALTI_COMPILED_SHA256={digest}")
    print("loads them; without the second line, only from a folder that belongs to its user alone.")
