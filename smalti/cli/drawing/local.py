"""`smalti generate` in this process."""

from collections.abc import Sequence

from rich.console import Console

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
from smalti.devices import check_flags
from smalti.entrance import signals
from smalti.outputs import open_folder
from smalti.parameters import check_counts, check_prompt, check_second_pass, check_seed
from smalti.pictures import Drawing
from smalti.registry import library
from smalti.starting import without_collection


def generate(prompts: Sequence[str], original: Drawing | None, options: Options) -> None:
    """Generates pictures of each prompt, or an original again.

    Raises:
        SmaltiError: an option or the model cannot be used.
    """
    console = Console(stderr=True)
    prompts = [check_prompt(prompt) for prompt in prompts]
    n, candidates, seed, model = options.n, options.candidates, options.seed, options.model
    folder = library.find(model if model is not None or original is None else original.model)
    refine, upscale = second_pass_of(original, options)
    # The factor that the refiner was trained for does not matter yet.
    check_second_pass(refine, upscale, None if folder.refiner_folder is None else 1)
    if original is not None:
        if model is None:
            check_revision(original, folder.revision, refine=refine, refiner=folder.refiner_revision)
        prompts = [original.prompt]
        seed = original.seed if seed is None else seed
        n = (original.n or 1) if n is None else n
        candidates = original.candidates if candidates is None else candidates
    sampling = (original or folder).sampling.replace(**options.sampling)
    counts = check_counts(
        folder.defaults.n if n is None else n,
        folder.defaults.candidates if candidates is None else candidates,
    )
    seed = check_seed(seed)
    recorded = original or folder.defaults
    vary = recorded.vary if options.vary is None else options.vary
    diversity = recorded.diversity if options.diversity is None else options.diversity
    # Every picture is created under a name of its own, so others may write there too.
    with open_folder(options.out, inputs={"model": folder.path}, exclusive=False):
        # Not before: importing JAX and torch takes seconds, and wrong options should be refused at once.
        with (
            console.status(f"Loading {folder.name} ..."),
            signals.at_once(),
            needs_extra("local"),
            without_collection(),
        ):
            check_flags()
            from smalti.pipeline import Pipeline

            pipeline = Pipeline.load(folder.path)
        for prompt in prompts:
            with collected_warnings() as warned, progress_bar(console, prompt) as bar:

                def show(done: int, total: int, bar: ProgressBar = bar) -> None:
                    signals.check()
                    bar.update(done, total)

                if original is not None and original.candidate is not None:
                    pictures = pipeline.generate_candidates(
                        prompt,
                        [original.candidate],
                        seed=seed,
                        sampling=sampling,
                        total=counts.candidates,
                        vary=vary,
                        on_progress=show,
                    )
                    second_pass = check_second_pass(refine, upscale, pipeline.refiner.trained_upscale)
                    pictures = pipeline.refine(pictures, second_pass) if second_pass else pictures
                else:
                    pictures = pipeline.generate(
                        prompt,
                        counts.n,
                        counts.candidates,
                        seed,
                        **sampling.every_value(),
                        vary=vary,
                        diversity=diversity,
                        refine=refine,
                        upscale=upscale,
                        **options.initial,
                        on_progress=show,
                    )
            signals.check()
            write(pictures, candidates=counts.candidates, diversity=diversity, options=options, warned=warned)
