"""What of a batch must not be drawn: the operator's policy, and the tenant's longest prompt."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from smalti.batches import BatchPrompt
from smalti.errors import RefusedByPolicyError
from smalti.policy import PromptToCheck
from smalti.services.gateway.database.tables import Batch
from smalti.services.gateway.jobs.context import GatewayContext

MAX_CALLS = 16
"""Prompts of a batch about which the hook is asked at the same time."""


class Policing:
    """Asks the operator's list and hook about prompts of batches; thread-safe."""

    def __init__(self, context: GatewayContext) -> None:
        self._policy = context.policy

    def problems(self, batch: Batch, prompts: Sequence[BatchPrompt], max_prompt: int) -> list[str | None]:
        """Returns why each prompt must not be drawn; None for one that may, or that has another problem.

        Args:
            batch: the batch.
            prompts: some of its prompts.
            max_prompt: characters that a prompt of its tenant may have.

        Raises:
            UnavailableError: the hook does not answer, and must.
        """
        if not self._policy.checks_prompts:
            return [_too_long(prompt, max_prompt) for prompt in prompts]

        def ask(prompt: BatchPrompt) -> str | None:
            if prompt.problem is not None:
                return None
            if problem := _too_long(prompt, max_prompt):
                return problem
            try:
                self._policy.check_prompt(
                    PromptToCheck(
                        prompt=prompt.prompt,
                        labels=batch.labels,
                        model=batch.model,
                        revision=batch.revision,
                    )
                )
            except RefusedByPolicyError as error:
                return str(error)
            return None

        if not self._policy.asks_hook:
            return [ask(prompt) for prompt in prompts]
        with ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="asking") as threads:
            return list(threads.map(ask, prompts))


def _too_long(prompt: BatchPrompt, max_prompt: int) -> str | None:
    if prompt.problem is not None or len(prompt.prompt) <= max_prompt:
        return None
    return f"the prompt has {len(prompt.prompt)} characters; the tenant may have {max_prompt}"
