"""The words that a model of a world knows, and the nearest known word for many others.

`words.json` is exported with the model, so that "a kitten" is drawn as a cat, with a warning.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from typing import Any

from smalti.training.data.world.captions import NUMBERS, grammar_words, phrases
from smalti.training.data.world.description import PLAIN, SIZES, WorldDescription
from smalti.training.data.world.packages.pictograms import Names
from smalti.training.data.world.vocabulary import Vocabulary

_MAX_PICTOGRAMS = 12
"""A keyword of more pictograms than this ("animal", "face") is not used as a word for any of them."""
_MIN_LETTERS = 3
_GROUPS_OF_THINGS = frozenset(range(3, 8))
"""Groups of animals and plants, food, travel, activities and objects; not of faces, persons, symbols and flags."""
_FACES_GROUP = 0
_FOLLOWS_HEAD = re.compile(r" (?:and|in|of|on|with|without|behind|showing|facing|\w+creasing|fluttering)\b")
_BEHIND = 3
"""Weight of the distance to a thing that comes later in the order."""
_LABEL = 4
"""Weight of a pictogram's label among its names; the others have the weight 1."""
_WORD = re.compile(r"[a-z][a-z'’-]*(?: [a-z'’-]+){0,2}")


def make_words(description: WorldDescription, names: Names) -> dict[str, Any]:
    """Returns the known words of a world by kind, and other words with the known word for each."""
    words = Vocabulary.of(description)
    known: dict[str, Any] = {
        "things": list(words.things),
        "plurals": [thing.word for thing in description.things if thing.plural],
        "many": dict(words.plurals),
        "colours": [*words.colours, *words.shades],
        "backgrounds": [PLAIN, *words.grounds],
        "patterns": {pattern: noun.rpartition(" ")[2] for pattern, noun in words.patterns.items()},
        "scenes": [phrase for phrases in words.scenes.values() for phrase in phrases],
        "styles": list(words.styles),
        "sizes": [size for size in SIZES if size != "usual"],
        "counts": {word: count for count, name in enumerate(NUMBERS, start=1) for word in (name, str(count))},
        **phrases(),
        "grammar": list(grammar_words()),
    }
    whole = {word for words in known.values() for word in words} | set(known["many"].values())
    whole |= set(known["patterns"].values())
    taken = whole | {part for word in whole for part in word.split()}
    synonyms = {word: target for word, target in description.synonyms.items() if word not in whole}
    own, *others = _layers(description, names)
    # The description may use a part of a word ("palm") as a synonym; the packages have unwanted ones ("light").
    by_chance = taken | set(description.not_synonyms)
    for layer, refused in ((own, whole), *((layer, by_chance) for layer in others)):
        for word, things in layer.items():
            if len(things) == 1 and word not in refused and word not in synonyms:
                synonyms[word] = next(iter(things))
    # Small sizes are left out: they show a thing less well.
    layouts = [{"weight": 3.0}, {"size": "big"}]
    known["variation"] = {"styles": dict.fromkeys(words.styles, 1.0), "layouts": layouts}
    known["synonyms"] = dict(sorted(synonyms.items()))
    known["neighbours"] = dict(sorted(_neighbours(description, names, taken | set(synonyms)).items()))
    return known


def _neighbours(description: WorldDescription, names: Names, known: Set[str]) -> dict[str, str]:
    """Returns names of other pictograms, each with the thing that is nearest in the order of all pictograms.

    Unicode's order puts similar pictograms side by side, the best known first: elephant, mammoth, rhinoceros,
    hippopotamus. So a thing before a pictogram is nearer than one after it. Only things of the same subgroup
    ("animal-mammal") count, or of the same group if the subgroup has no things.
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
        (group, subgroup, position, words[code])
        for position, (group, subgroup, _, code) in enumerate(order)
        if code in words
    ]
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for position, (group, subgroup, _, code) in enumerate(order):
        near = [thing for thing in things if thing[:2] == (group, subgroup)]
        if not near and group in _GROUPS_OF_THINGS:
            near = [thing for thing in things if thing[0] == group]
        if near:
            *_, nearest = min(near, key=lambda thing: distance(position, thing[2]))
            for word, weight in _names_of(code, names).items():
                votes[word][nearest] += weight
    return {
        word: counts.most_common(1)[0][0]
        for word, counts in votes.items()
        # Without names such as "red envelope", which is an envelope that is red.
        if known.isdisjoint((word, *word.split())) and _WORD.fullmatch(word)
    }


def _names_of(code: str, names: Names) -> dict[str, int]:
    """Returns the names of a pictogram with their weights: its label, and short forms such as "truck" for
    "delivery truck" and "hippo" for "hippopotamus".
    """
    label = names.entries[code]["label"].lower()
    head = _FOLLOWS_HEAD.split(label.removesuffix(" face"))[0].split()[-1]
    short = (word for word in names.agreed(code) if len(word) > _MIN_LETTERS and head.startswith(word))
    return {**dict.fromkeys((head, *short), 1), label: _LABEL}


def _layers(description: WorldDescription, names: Names) -> Iterator[dict[str, set[str]]]:
    """Yields words with the things that they may mean, from the most to the least reliable source."""
    uses = Counter(word for code in names.entries for word in names.agreed(code))
    own, labels, keywords = defaultdict(set), defaultdict(set), defaultdict(set)
    for thing in description.things:
        for word in thing.also:
            own[word].add(thing.word)
        labels[thing.label.lower()].add(thing.word)
        for word in names.agreed(names.codes[thing.label]):
            if uses[word] <= _MAX_PICTOGRAMS and len(word) >= _MIN_LETTERS and _WORD.fullmatch(word):
                keywords[word].add(thing.word)
    yield from (own, labels, keywords)
