"""The prompt in words that the model knows, for the stages after the encoder."""

from collections.abc import Sequence

from smalti.messages import ChunkTask
from smalti.text.rewording import Rewriter


def effective_prompt(task: ChunkTask, rewriter: Rewriter) -> str:
    """Returns the prompt in words that the model knows.

    Args:
        task: carries it since version 2 of the messages.
        rewriter: rewrites the prompt again for a task of version 1.
    """
    if task.version < 2:
        return rewriter(task.prompt).prompt
    return task.effective_prompt or task.prompt


def wordings_of(task: ChunkTask, prompt: str, rewriter: Rewriter) -> Sequence[str | None]:
    """Returns what was encoded for each candidate of a task; None where that is the effective prompt of the job.

    Args:
        task: the task.
        prompt: its effective prompt.
        rewriter: knows what may be added to prompts.
    """
    if not task.vary:
        return [None] * len(task.candidates)
    return rewriter.wordings(prompt, task.seed, task.candidates)
