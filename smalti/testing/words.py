"""The vocabulary of a small world."""

from smalti.text.vocabulary import Layout, Variation, Words

SMALL_WORLD = Words(
    things=(
        "cat", "dog", "unicorn", "elephant", "guitar", "balloon", "ice cream", "tree", "pine tree", "hat",
        "light bulb", "shirt", "heart", "apple", "whale", "grapes",
    ),
    plurals=("grapes",),
    colours=("red", "yellow", "blue"),
    backgrounds=("white", "red", "yellow", "blue", "gray"),
    styles=("flat", "twemoji"),
    sizes=("big", "small"),
    places=("in the top left corner", "at the bottom"),
    grammar=(
        "a", "an", "and", "background", "in", "left", "next", "of", "on", "picture", "right", "style", "the", "to",
        "with",
    ),
    synonyms={
        "beside": "next", "cat face": "cat", "cats": "cat", "dogs": "dog", "grey": "gray", "huge": "big",
        "kitten": "cat", "navy": "blue", "pine": "pine tree", "pine trees": "pine tree", "puppy": "dog",
        "photo": "picture", "red heart": "heart", "t-shirt": "shirt", "top hat": "hat",
    },
    neighbours={"hippo": "elephant", "hippopotamus": "elephant", "violin": "guitar", "polar bear": "dog"},
    variation=Variation(
        styles={"flat": 1, "twemoji": 2},
        layouts=(
            Layout(size="big", weight=2),
            Layout(size="small", place="in the top left corner"),
            Layout(size="small", place="at the bottom"),
        ),
    ),
)  # fmt: skip
"""Sixteen things of one or two words, with synonyms and neighbours for some others."""
