"""Scoring the pictures of a shard, and choosing the best of each prompt."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from smalti.selection import SCORE_DIGITS, choose
from smalti.shards.pictures import DrawnPrompt
from smalti.shards.readings import PROMPT_ERRORS, OnPrompt

if TYPE_CHECKING:
    from smalti.models.clip import Ranking

Look = Callable[[str, Sequence[Image.Image]], "Ranking"]


def rank_shard(
    drawn: Iterable[DrawnPrompt], look: Look, *, on_prompt: OnPrompt = lambda prompt: None
) -> Iterator[DrawnPrompt]:
    """Yields the prompts of a shard with the chosen pictures, best first, and their scores.

    A prompt over which the ranker fails gets a problem, and the others go on.

    Args:
        drawn: the prompts with the pictures of all candidates.
        look: returns the scores and features of pictures of a prompt.
        on_prompt: called before each prompt.
    """
    for each in drawn:
        on_prompt(each.prompt)
        if each.reading.problem is not None:
            yield each
            continue
        prompt, images = each.prompt, [picture.image() for picture in each.pictures]
        try:
            ranking = look(each.reading.prompt(prompt), images)
        except PROMPT_ERRORS as error:
            yield each.failed(str(error))
            continue
        scores = [round(float(score), SCORE_DIGITS) for score in ranking.scores]
        chosen = choose(scores, ranking.features, prompt.n, prompt.diversity)
        yield replace(
            each, pictures=tuple(replace(each.pictures[index], score=scores[index]) for index in chosen)
        )
