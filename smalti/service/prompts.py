"""The prompt in words that the model knows, for the stages after the encoder."""

from smalti.messages import ChunkTask
from smalti.text.rewording import Rewriter


def effective_prompt(task: ChunkTask, rewriter: Rewriter) -> str:
    """Returns the prompt that was encoded.

    Args:
        task: carries it since version 2 of the messages.
        rewriter: rewrites the prompt again for a task of version 1.
    """
    if task.version < 2:
        return rewriter(task.prompt).prompt
    return task.effective_prompt or task.prompt
