"""`smalti generate` in this process."""

from collections.abc import Sequence

from rich.console import Console

from smalti.cli import interrupts
from smalti.cli.drawn import Options, check_folder, check_revision, heard, progress_bar, write
from smalti.parameters import check_counts, check_prompt, check_seed
from smalti.pictures import Drawing
from smalti.registry import library


def generate(prompts: Sequence[str], original: Drawing | None, options: Options) -> None:
    """Draws pictures of each prompt, or an original again.

    Raises:
        SmaltiError: an option cannot be used, or the model.
    """
    console = Console(stderr=True)
    drawings = [check_prompt(prompt) for prompt in prompts]
    n, candidates, seed, model = options.n, options.candidates, options.seed, options.model
    folder = library.find(model if model is not None or original is None else original.model)
    if original is not None:
        if model is None:
            check_revision(original, folder.revision)
        drawings = [original.prompt]
        seed = original.seed if seed is None else seed
        n = (original.n or 1) if n is None else n
        candidates = original.candidates if candidates is None else candidates
    sampling = (original or folder).sampling.replace(**options.sampling)
    counts = check_counts(
        folder.defaults.n if n is None else n,
        folder.defaults.candidates if candidates is None else candidates,
    )
    seed = check_seed(seed)
    check_folder(options.out)

    # Only now: importing JAX and torch takes seconds, and bad input should be told at once.
    with console.status(f"Loading {folder.name} ..."):
        from smalti.engines.compilation import use_compilation_cache
        from smalti.pipeline import Pipeline

        use_compilation_cache()
        pipeline = Pipeline.load(folder.path)
    for prompt in drawings:
        with heard() as warned, progress_bar(console, prompt) as bar:
            if original is not None and original.candidate is not None:
                pictures = pipeline.draw(
                    prompt, seed, [original.candidate], sampling, counts.candidates, rows_drawn=bar.show
                )
            else:
                pictures = pipeline.generate(
                    prompt, counts.n, counts.candidates, seed, **sampling.model_dump(), rows_drawn=bar.show
                )
        interrupts.check()
        write(pictures, counts.candidates, options, warned)
