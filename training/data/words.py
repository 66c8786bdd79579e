"""The words a model of a world knows, and the nearest known word for many that it does not.

`words.json` travels with the model, so that "a kitten" is drawn as a cat, with a warning.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from training.data.attributes import SIZES
from training.data.captions import grammar_words
from training.data.pictograms import Names
from training.data.world import PLAIN, WorldDescription

_MOST_PICTOGRAMS = 12
"""A keyword of more pictograms than this ("animal", "face") stands for none of them."""
_SHORTEST = 3
_WORD = re.compile(r"[a-z][a-z'’-]*(?: [a-z'’-]+){0,2}")


def make_words(description: WorldDescription, names: Names) -> dict[str, Any]:
    """Lists the known words of a world by kind, and the synonyms with the known word for each."""
    known: dict[str, Any] = {
        "things": [thing.word for thing in description.things],
        "plurals": [thing.word for thing in description.things if thing.plural],
        "colours": list(description.colours),
        "backgrounds": [PLAIN, *description.backgrounds],
        "styles": [style.word for style in description.styles],
        "sizes": list(SIZES),
        "grammar": list(grammar_words()),
    }
    taken = {word for words in known.values() for word in words}
    taken |= {part for word in taken for part in word.split()}
    refused = taken | set(description.not_synonyms)
    synonyms = {word: target for word, target in description.synonyms.items() if word not in taken}
    for layer in _layers(description, names):
        for word, things in layer.items():
            if len(things) == 1 and word not in refused and word not in synonyms:
                synonyms[word] = next(iter(things))
    for thing in description.things:
        if not thing.plural:
            synonyms.setdefault(_plural(thing.word), thing.word)
    known["synonyms"] = dict(sorted(synonyms.items()))
    return known


def _layers(description: WorldDescription, names: Names) -> Iterator[dict[str, set[str]]]:
    """Yields words with the things they may mean, the surest first."""
    uses = Counter(word for code in names.entries for word in names.agreed(code))
    own, labels, keywords = defaultdict(set), defaultdict(set), defaultdict(set)
    for thing in description.things:
        for word in thing.also:
            own[word].add(thing.word)
        labels[thing.label.lower()].add(thing.word)
        for word in names.agreed(names.codes[thing.label]):
            if uses[word] <= _MOST_PICTOGRAMS and len(word) >= _SHORTEST and _WORD.fullmatch(word):
                keywords[word].add(thing.word)
    yield from (own, labels, keywords)


def _plural(word: str) -> str:
    if word.endswith("man"):
        return word[:-3] + "men"
    if word.endswith("f"):
        return word[:-1] + "ves"
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
