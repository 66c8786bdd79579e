"""`smalti generate --server`: prompts to a gateway, pictures back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console

from smalti.cli.drawn import Bar, Options, check_folder, check_revision, heard, progress_bar, write
from smalti.parameters import SamplingParameters, check_counts, check_prompt, check_seed
from smalti.pictures import Drawing

if TYPE_CHECKING:
    from smalti import client
    from smalti.v1.job_pb2 import Job


@dataclass(frozen=True)
class Downloaded:
    """A picture from the gateway, as one that was drawn here."""

    image: Image.Image
    candidate: int
    score: float
    drawing: Drawing


def generate(server: str, prompts: Sequence[str], original: Drawing | None, options: Options) -> None:
    """Draws pictures of each prompt, or an original again, at a gateway.

    Raises:
        SmaltiError: an option cannot be used, the gateway refuses, a job does not succeed, or nobody answers.
    """
    # Only now: who draws in this process does not need gRPC.
    from smalti.client import Client

    console = Console(stderr=True)
    drawings = [original.prompt] if original else [check_prompt(prompt) for prompt in prompts]
    # Checked here only where it is known: what is left out is the gateway's to know.
    if options.n is not None and options.candidates is not None:
        check_counts(options.n, options.candidates)
    SamplingParameters().replace(**options.sampling)
    seed = check_seed(original.seed if original and options.seed is None else options.seed)
    asked: client.GenerateOptions = {
        "n": options.n,
        "candidates": options.candidates,
        "seed": seed,
        "model": options.model,
        **options.sampling,  # type: ignore[typeddict-item]
    }
    check_folder(options.out)
    with Client(server) as gateway:
        of = None
        if original is not None:
            of = original.candidates if options.candidates is None else options.candidates
            if options.model is None:
                there = gateway.model(original.model).reference
                check_revision(original, there.revision)
            asked |= _again(original, options, of)
        for prompt in drawings:
            with heard() as warned, progress_bar(console, prompt) as bar:
                pictures = _draw(gateway, prompt, asked, bar, console)
            job = pictures[0].job
            candidates = of or job.parameters.candidates
            results = [_result(picture, candidates) for picture in pictures]
            write(results, candidates, options, warned)


def _again(original: Drawing, options: Options, of: int) -> "client.GenerateOptions":
    """Returns what draws an original again, but for what the user has given in its place."""
    asked: client.GenerateOptions = {
        "model": options.model or original.model,
        **original.sampling.replace(**options.sampling).model_dump(),  # type: ignore[typeddict-item]
    }
    n = (original.n or 1) if options.n is None else options.n
    check_counts(n, of)
    if original.candidate is not None:
        return {**asked, "n": 1, "candidates": 1, "first_candidate": original.candidate}
    return {**asked, "n": n, "candidates": of}


def _draw(
    gateway: "client.Client", prompt: str, asked: "client.GenerateOptions", bar: Bar, console: Console
) -> "list[client.Picture]":
    def show(job: "Job") -> None:
        progress = job.progress
        bar.show(progress.rows_drawn, progress.rows or None, _state(job))

    try:
        return gateway.generate(prompt, on_progress=show, **asked)
    except KeyboardInterrupt as error:
        for note in getattr(error, "__notes__", ()):
            console.print(f"smalti: {note}", markup=False, highlight=False, soft_wrap=True)
        raise


def _state(job: "Job") -> str:
    """Says in a few words where a job is."""
    from smalti.v1.job_pb2 import JOB_STATE_QUEUED

    progress = job.progress
    if job.state == JOB_STATE_QUEUED:
        if not job.HasField("jobs_ahead"):
            return "waiting"
        return f"waiting, {job.jobs_ahead} {'job' if job.jobs_ahead == 1 else 'jobs'} ahead"
    if progress.candidates and progress.candidates_drawn == progress.candidates:
        return "ranking"
    return "drawing" if progress.rows_drawn else ""


def _result(picture: "client.Picture", candidates: int) -> Downloaded:
    job = picture.job
    parameters, score = job.parameters, picture.score
    drawn = job.prompt_reading.drawn
    return Downloaded(
        image=picture.image,
        candidate=picture.candidate,
        score=score,
        drawing=Drawing(
            prompt=parameters.prompt,
            seed=parameters.seed,
            model=parameters.model.name,
            revision=parameters.model.revision,
            sampling=SamplingParameters(
                guidance_scale=parameters.sampling.guidance_scale,
                temperature=parameters.sampling.temperature,
                top_k=parameters.sampling.top_k,
                top_p=parameters.sampling.top_p,
            ),
            candidates=candidates,
            candidate=picture.candidate,
            score=round(score, 4),
            drawn=drawn if drawn and drawn != parameters.prompt else None,
        ),
    )
