"""Asks the operator's list and hook, bounds their time, and counts their answers."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from enum import StrEnum
from functools import partial
from typing import Final, Self, TypeVar

from smalti.errors import RefusedByPolicyError, UnavailableError
from smalti.policy import PERMITTED, PicturesToCheck, PromptToCheck, Verdict
from smalti.rpc.settings import RpcSettings
from smalti.services.gateway.policy.hooks import Hook, open_hook
from smalti.services.gateway.policy.word_list import WordList
from smalti.services.gateway.settings import GatewaySettings, HookAway, HookSubjects

log = logging.getLogger(__name__)

MAX_CALLS: Final = 16
"""Maximum number of calls of the hook at the same time."""
AWAY_SECONDS: Final = 2.0
"""Time for which a hook that has not answered is not asked again."""

Answer = TypeVar("Answer")


class Subject(StrEnum):
    """What is checked."""

    PROMPT = "prompt"
    READING = "reading"
    """The prompt as the model reads it."""
    PICTURE = "picture"
    PREVIEW = "preview"


Count = Callable[[Subject, str, str, int], None]
"""Counts answers: takes the subject, who has answered, the answer, and how often."""


class ContentPolicy:
    """What may be drawn; thread-safe. Without a list and a hook, everything may."""

    def __init__(
        self,
        *,
        words: WordList | None = None,
        hook: Hook | None = None,
        subjects: HookSubjects = HookSubjects.ALL,
        away: HookAway = HookAway.REFUSE,
        timeout: float = 10.0,
    ) -> None:
        """Creates the policy.

        Args:
            words: the operator's list.
            hook: the operator's hook; closed with the policy.
            subjects: what the hook is asked about.
            away: what happens when the hook does not answer.
            timeout: seconds that the hook has for an answer.
        """
        self._words = words
        self._hook = hook
        self._away = away
        self.timeout = timeout
        """Seconds that the hook has for an answer."""
        self._asks_prompts = hook is not None and subjects is not HookSubjects.PICTURES
        self.asks_pictures = hook is not None and subjects is not HookSubjects.PROMPTS
        """Whether pictures need a verdict before anybody gets them."""
        self.count: Count = lambda subject, by, outcome, amount: None
        """Counts the answers; set before the gateway starts."""
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="policy")
        self._lock = threading.Lock()
        self._away_until = 0.0

    @classmethod
    def load(cls, settings: GatewaySettings, rpc: RpcSettings) -> Self:
        """Reads the list and opens the hook.

        Raises:
            InvalidInputError: a setting is invalid; names the variable.
        """
        return cls(
            words=WordList(settings.policy_list) if settings.policy_list else None,
            hook=open_hook(settings.policy_hook, rpc) if settings.policy_hook else None,
            subjects=settings.policy_subjects,
            away=settings.policy_away,
            timeout=settings.policy_timeout,
        )

    @property
    def pictures_wait(self) -> bool:
        """Whether nobody gets a picture at present, since the hook is away."""
        return self.asks_pictures and self.waits

    @property
    def waits(self) -> bool:
        """Whether the hook is away, and must be waited for."""
        with self._lock:
            return self._away is HookAway.REFUSE and time.monotonic() < self._away_until

    @property
    def checks_texts(self) -> bool:
        """Whether there is a list."""
        return self._words is not None

    @property
    def checks_prompts(self) -> bool:
        """Whether there is anything to ask about a prompt."""
        return self._words is not None or self._asks_prompts

    @property
    def asks_hook(self) -> bool:
        """Whether a hook is asked about prompts."""
        return self._asks_prompts

    def check_prompt(self, asked: PromptToCheck) -> None:
        """Asks the list, then the hook, about a prompt.

        Raises:
            RefusedByPolicyError: it must not be drawn.
            UnavailableError: the hook does not answer, and must.
        """
        self.check_text(asked.prompt, Subject.PROMPT)
        hook = self._hook
        if not self._asks_prompts or hook is None:
            return
        verdict = self._ask(Subject.PROMPT, 1, lambda: hook.check_prompt(asked, self.timeout))
        if verdict is None:
            return
        self._count_verdicts(Subject.PROMPT, [verdict])
        if verdict.refused:
            raise refusal("the prompt", verdict.message)

    def check_text(self, text: str, subject: Subject) -> None:
        """Asks the list about a text; raises `RefusedByPolicyError` if it must not be drawn."""
        if self._words is None:
            return
        line = self._words.find(text)
        self.count(subject, "list", "permitted" if line is None else "refused", 1)
        if line is not None:
            log.info("the %s is refused by line %d of the list", subject, line)
            raise refusal("the prompt", "")

    def check_pictures(self, asked: PicturesToCheck, subject: Subject) -> Sequence[Verdict]:
        """Asks the hook about pictures; returns a verdict for each.

        Raises:
            UnavailableError: the hook does not answer, and must.
        """
        hook, count = self._hook, len(asked.pictures)
        if not self.asks_pictures or hook is None:
            return [PERMITTED] * count

        def ask() -> Sequence[Verdict]:
            verdicts = hook.check_pictures(asked, self.timeout)
            if len(verdicts) != count:
                raise ValueError(f"{count} pictures have {len(verdicts)} verdicts")
            return verdicts

        verdicts = self._ask(subject, count, ask)
        if verdicts is None:
            return [PERMITTED] * count
        self._count_verdicts(subject, verdicts)
        return verdicts

    def close(self) -> None:
        """Closes the hook; calls of it that hang are left to themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._hook is not None:
            self._hook.close()

    def _ask(self, subject: Subject, amount: int, ask: Callable[[], Answer]) -> Answer | None:
        """Returns the answer of the hook; None if it is away and that does not matter."""
        with self._lock:
            is_away = time.monotonic() < self._away_until
        if not is_away:
            asking = self._threads.submit(partial(copy_context().run, ask))
            try:
                return asking.result(self.timeout)
            except Exception as error:
                asking.cancel()
                self._note_away(error)
        self.count(subject, "hook", "away", amount)
        if self._away is HookAway.REFUSE:
            raise UnavailableError("the operator's policy does not answer; try again", AWAY_SECONDS)
        return None

    def _note_away(self, error: Exception) -> None:
        with self._lock:
            self._away_until = time.monotonic() + AWAY_SECONDS
        problem = f"no answer within {self.timeout:g} s" if isinstance(error, TimeoutError) else repr(error)
        log.warning("the policy hook does not answer: %s", problem)

    def _count_verdicts(self, subject: Subject, verdicts: Sequence[Verdict]) -> None:
        refused = sum(verdict.refused for verdict in verdicts)
        for outcome, amount in (("refused", refused), ("permitted", len(verdicts) - refused)):
            if amount:
                self.count(subject, "hook", outcome, amount)


def refusal(what: str, message: str) -> RefusedByPolicyError:
    """Returns the error for a caller.

    Args:
        what: what is refused.
        message: what the hook says to callers; may be empty.
    """
    return RefusedByPolicyError(f"the operator's policy refuses {what}{f': {message}' if message else ''}")
