"""`smalti generate --server`: prompts to a gateway, pictures back."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Console

from smalti.cli.drawing.options import REVISION_MARK
from smalti.cli.drawing.output import (
    Options,
    ProgressBar,
    check_revision,
    collected_warnings,
    progress_bar,
    second_pass_of,
    write,
)
from smalti.cli.extras import needs_extra
from smalti.entrance import signals
from smalti.errors import InvalidInputError, ModelNotFoundError
from smalti.outputs import open_folder
from smalti.parameters import SamplingParameters, check_counts, check_prompt, check_seed
from smalti.pictures import Drawing

REVISION_PREFIX: Final = "sha256:"
REVISION_DIGITS: Final = 64

if TYPE_CHECKING:
    from smalti.client import AsyncClient, GenerateOptions, RemotePicture
    from smalti.v1.job_pb2 import Job
    from smalti.v1.model_pb2 import Model


def generate(server: str, prompts: Sequence[str], original: Drawing | None, options: Options) -> None:
    """Generates pictures of each prompt, or an original again, at a gateway.

    Raises:
        SmaltiError: an option cannot be used, the gateway refuses or does not answer, or a job does not succeed.
    """
    # Imported here because `smalti generate` without a server does not need gRPC.
    with signals.at_once(), needs_extra("client"):
        import smalti.client  # noqa: F401

    prompts = [original.prompt] if original else [check_prompt(prompt) for prompt in prompts]
    # Only values that were given can be checked here; the gateway knows the others.
    if options.n is not None and options.candidates is not None:
        check_counts(options.n, options.candidates)
    SamplingParameters().replace(**options.sampling)
    seed = check_seed(original.seed if original and options.seed is None else options.seed)
    refine, upscale = second_pass_of(original, options)
    request: GenerateOptions = {
        **options.shared_request(),
        "seed": seed,
        "refine": refine,
        "upscale": upscale,
        **options.initial,
    }
    # Every picture is created under a name of its own, so others may write there too.
    with open_folder(options.out, exclusive=False):
        _run(_generate_all(server, prompts, original, options, request))


def _run(work: Coroutine[object, object, None]) -> None:
    """Runs calls of a gateway; Ctrl-C cancels the one that is waited for, and then raises KeyboardInterrupt here."""

    async def run() -> None:
        task, loop = asyncio.ensure_future(work), asyncio.get_running_loop()
        asked: list[int] = []

        def cancel(number: int) -> None:
            # Only once, since the cancelled call tells the gateway that its job is not wanted any more.
            if not asked:
                asked.append(number)
                with contextlib.suppress(RuntimeError):  # The loop is closed.
                    loop.call_soon_threadsafe(task.cancel)

        with stopping.calling(cancel):
            await task

    with signals.deferred() as stopping:
        try:
            asyncio.run(run())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _generate_all(
    server: str,
    prompts: Sequence[str],
    original: Drawing | None,
    options: Options,
    request: "GenerateOptions",
) -> None:
    """Generates pictures of each prompt with the options of a request, and writes them."""
    from smalti.client import AsyncClient

    console = Console(stderr=True)
    async with AsyncClient(server) as client:
        total = None
        if options.model is not None and REVISION_MARK in options.model:
            name, revision = await _named_revision(client, options.model)
            options = dataclasses.replace(options, model=name)
            request |= {"model": name, "revision": revision}
        if original is not None:
            total = original.candidates if options.candidates is None else options.candidates
            if options.model is None:
                found = await _model_of(client, original)
                check_revision(
                    original,
                    found.reference.revision,
                    refine=request["refine"],
                    refiner=found.refiner.revision if found.HasField("refiner") else None,
                )
                request["revision"] = original.revision
            request |= _options_of(original, options, total)
        for prompt in prompts:
            with collected_warnings() as warned, progress_bar(console, prompt) as bar:
                pictures = await _generate(client, prompt, request, bar, console)
            parameters = pictures[0].job.parameters
            candidates = total or parameters.candidates
            # A candidate that is generated again keeps the number of candidates of its original.
            pictures = [dataclasses.replace(picture, total=candidates) for picture in pictures]
            write(
                pictures,
                candidates=candidates,
                diversity=parameters.diversity,
                options=options,
                warned=warned,
            )


async def _model_of(client: "AsyncClient", original: Drawing) -> "Model":
    """Returns the revision of an original, or else one that the gateway can draw with now."""
    try:
        return await client.model(original.model, original.revision)
    except ModelNotFoundError:
        return await client.model(original.model)


async def _named_revision(client: "AsyncClient", model: str) -> tuple[str, str]:
    """Returns the name and the revision of NAME@REVISION; of the revision, the first digits are enough.

    Raises:
        InvalidInputError: no revision of the model that can be drawn now begins so, or several do.
    """
    name, _, wanted = model.partition(REVISION_MARK)
    digits = wanted.removeprefix(REVISION_PREFIX)
    if len(digits) == REVISION_DIGITS:
        return name, REVISION_PREFIX + digits  # It may be one that has no workers now.
    there = [each.reference.revision async for each in client.models() if each.reference.name == name]
    found = [each for each in there if digits and each.startswith(REVISION_PREFIX + digits)]
    if len(found) != 1:
        known = ", ".join(each.removeprefix(REVISION_PREFIX)[:12] for each in there) or "none"
        problem = f"must be a revision of {name} at {client.server}, got {wanted!r:.80}; there is {known}"
        raise InvalidInputError("model", problem)
    return name, found[0]


def _options_of(original: Drawing, options: Options, total: int) -> "GenerateOptions":
    """Returns the options that generate an original again, with the user's own options in place of its own."""
    again: GenerateOptions = {
        "model": options.model or original.model,
        "vary": original.vary if options.vary is None else options.vary,
        "diversity": original.diversity if options.diversity is None else options.diversity,
        **original.sampling.replace(**options.sampling).every_value(),  # type: ignore[typeddict-item]
    }
    n = (original.n or 1) if options.n is None else options.n
    check_counts(n, total)
    if original.candidate is not None:
        return {**again, "n": 1, "candidates": 1, "first_candidate": original.candidate}
    return {**again, "n": n, "candidates": total}


async def _generate(
    client: "AsyncClient", prompt: str, request: "GenerateOptions", bar: ProgressBar, console: Console
) -> "list[RemotePicture]":
    def show(job: "Job") -> None:
        bar.update(job.progress.rows_drawn, job.progress.rows or None, _state(job))

    try:
        return await client.generate(prompt, on_progress=show, **request)
    except asyncio.CancelledError as error:
        for note in getattr(error, "__notes__", ()):
            console.print(f"smalti: {note}", markup=False, highlight=False, soft_wrap=True)
        raise


def _state(job: "Job") -> str:
    """Returns the state of a job in a few words."""
    from smalti.v1.job_pb2 import JOB_STATE_QUEUED

    progress = job.progress
    if job.state == JOB_STATE_QUEUED:
        if not job.HasField("jobs_ahead"):
            return "waiting"
        return f"waiting, {job.jobs_ahead} {'job' if job.jobs_ahead == 1 else 'jobs'} ahead"
    if progress.pictures_to_refine and progress.candidates_ranked == progress.candidates:
        return "refining" if job.parameters.HasField("refine") else "enlarging"
    if progress.candidates and progress.candidates_drawn == progress.candidates:
        return "ranking"
    return "drawing" if progress.rows_drawn else ""
