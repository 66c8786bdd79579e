"""The words a model of a world knows, and the nearest known word for many that it does not.

`words.json` travels with the model, so that "a kitten" is drawn as a cat, with a warning.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from typing import Any

from smalti.training.data.world.attributes import SIZES
from smalti.training.data.world.captions import grammar_words
from smalti.training.data.world.description import PLAIN, WorldDescription
from smalti.training.data.world.pictograms import Names

_MAX_PICTOGRAMS = 12
"""A keyword of more pictograms than this ("animal", "face") stands for none of them."""
_SHORTEST = 3
_GROUPS_OF_THINGS = frozenset(range(3, 8))
"""Animals and plants, food, travel, activities and objects; not faces, persons, symbols and flags."""
_FACES_GROUP = 0
_FOLLOWS_HEAD = re.compile(r" (?:and|in|of|on|with|without|behind|showing|facing|\w+creasing|fluttering)\b")
_BEHIND = 3
_LABEL = 4
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
    whole = {word for words in known.values() for word in words}
    taken = whole | {part for word in whole for part in word.split()}
    synonyms = {word: target for word, target in description.synonyms.items() if word not in taken}
    own, *others = _layers(description, names)
    # The description may say what a part of a word ("palm") stands for; the packages say much ("light").
    by_chance = taken | set(description.not_synonyms)
    for layer, refused in ((own, whole), *((layer, by_chance) for layer in others)):
        for word, things in layer.items():
            if len(things) == 1 and word not in refused and word not in synonyms:
                synonyms[word] = next(iter(things))
    for thing in description.things:
        if not thing.plural:
            synonyms.setdefault(_plural(thing.word), thing.word)
    known["synonyms"] = dict(sorted(synonyms.items()))
    known["neighbours"] = dict(sorted(_neighbours(description, names, taken | set(synonyms)).items()))
    return known


def _neighbours(description: WorldDescription, names: Names, known: Set[str]) -> dict[str, str]:
    """Returns names of other pictograms, with the thing that stands nearest in the order of all of them.

    Unicode's order puts like beside like, and the best known first: elephant, mammoth, rhinoceros,
    hippopotamus. So a thing before is nearer than one behind. Only things of the same subgroup
    ("animal-mammal") are near, or, where it has none, of the same group.
    """

    def distance(start: int, end: int) -> int:
        return start - end if end <= start else _BEHIND * (end - start)

    words = {names.codes[thing.label]: thing.word for thing in description.things}
    order = sorted(
        (entry["group"], entry["subgroup"], entry["order"], code)
        for code, entry in names.entries.items()
        if names.reason_to_drop(code) is None
        and not (entry["group"] == _FACES_GROUP and entry["label"].endswith(" face"))
    )
    things = [
        (group, subgroup, place, words[code])
        for place, (group, subgroup, _, code) in enumerate(order)
        if code in words
    ]
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for place, (group, subgroup, _, code) in enumerate(order):
        near = [thing for thing in things if thing[:2] == (group, subgroup)]
        if not near and group in _GROUPS_OF_THINGS:
            near = [thing for thing in things if thing[0] == group]
        if near:
            *_, nearest = min(near, key=lambda thing: distance(place, thing[2]))
            for word, weight in _names_of(code, names).items():
                votes[word][nearest] += weight
    return {
        word: counts.most_common(1)[0][0]
        for word, counts in votes.items()
        # "red envelope" is an envelope that is red.
        if known.isdisjoint((word, *word.split())) and _WORD.fullmatch(word)
    }


def _names_of(code: str, names: Names) -> dict[str, int]:
    """Returns what people call a pictogram, and how surely: its label, or "truck" for "delivery truck"
    and "hippo" for "hippopotamus".
    """
    label = names.entries[code]["label"].lower()
    head = _FOLLOWS_HEAD.split(label.removesuffix(" face"))[0].split()[-1]
    short = (word for word in names.agreed(code) if len(word) > _SHORTEST and head.startswith(word))
    return {**dict.fromkeys((head, *short), 1), label: _LABEL}


def _layers(description: WorldDescription, names: Names) -> Iterator[dict[str, set[str]]]:
    """Yields words with the things they may mean, the surest first."""
    uses = Counter(word for code in names.entries for word in names.agreed(code))
    own, labels, keywords = defaultdict(set), defaultdict(set), defaultdict(set)
    for thing in description.things:
        for word in thing.also:
            own[word].add(thing.word)
        labels[thing.label.lower()].add(thing.word)
        for word in names.agreed(names.codes[thing.label]):
            if uses[word] <= _MAX_PICTOGRAMS and len(word) >= _SHORTEST and _WORD.fullmatch(word):
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
