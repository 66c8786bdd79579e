"""Prompts reworded for models of a small world, and the notices about it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smalti.errors import ModelError
from smalti.registry.folder import ModelFolder
from smalti.registry.verify import find_problems
from smalti.testing.words import SMALL_WORLD
from smalti.text.lexicon import MAX_PROMPT_LENGTH, split
from smalti.text.rewording import Rewriter
from smalti.text.vocabulary import CAPTION_WORDS, KNOWN_WORDS_FILE, article, load_words

rewrite = Rewriter(SMALL_WORLD)
KNOWN = {part for word in SMALL_WORLD.known for part in split(word)}

Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("a blue cat on a yellow background", "a blue cat on a yellow background"),
        ("a dog next to a red balloon", "a dog next to a red balloon"),
        ("a cat to the left of a dog, flat style", "a cat to the left of a dog, flat style"),
        ("a big dog and a small cat", "a big dog and a small cat"),
        ("grapes", "grapes"),
        ("an ice cream and a pine tree", "an ice cream and a pine tree"),
        ("A BLUE  CAT!", "a blue cat"),
        ("an ice-cream", "an ice cream"),
        ("Éléphant", "elephant"),
        ("ice\ncream", "ice cream"),
        ("the cat's tree", "the cat tree"),
    ],
)
def test_known_words_stay_the_same(prompt: str, drawn: str) -> None:
    rewording = rewrite(prompt)
    assert rewording.prompt == drawn
    assert rewording.notice == ""


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("two cats", "a cat"),
        ("cats", "a cat"),
        ("pine trees on grey", "a pine tree on a gray background"),
        ("a cat on a grey background", "a cat on a gray background"),
        ("a t-shirt", "a shirt"),
        ("a huge dog", "a big dog"),
        ("a photo of a dog beside a cat", "a dog and a cat"),
        ("please draw me a cat", "a cat"),
        ("🐱 on a red background", "a cat on a red background"),
        ("❤️", "a heart"),
        ("a cat on yellow", "a cat on a yellow background"),
        ("a cat in a blue", "a cat on a blue background"),
        ("a cat that is blue, huge", "a big blue cat"),
    ],
)
def test_other_forms_of_known_words_are_noticed_only_if_something_is_lost(prompt: str, drawn: str) -> None:
    rewording = rewrite(prompt)
    assert rewording.prompt == drawn
    assert ("two" in rewording.notice) == ("two" in prompt)
    assert bool(rewording.notice) == ("two" in prompt)


@pytest.mark.parametrize(
    ("prompt", "drawn", "unknown"),
    [
        # Synonyms, in the plural and with looks.
        ("a kitten", "a cat", ["kitten"]),
        ("Puppies and kittens", "a dog and a cat", ["puppies", "kittens"]),
        ("a navy kitten in a hat", "a blue cat and a hat", ["navy", "kitten"]),
        ("a pine on a yellow background, flat", "a pine tree on a yellow background in flat style", ["pine"]),
        ("a top hat", "a hat", ["top hat"]),
        ("a kitten to the right of a dog", "a dog and a cat", ["kitten"]),
        # Neighbours.
        ("a hippo in a swimming pool", "an elephant", ["hippo", "swimming", "pool"]),
        ("two red violins", "a red guitar", ["two", "violins"]),
        ("a polar bear", "a dog", ["polar bear"]),
        ("🦛 on white", "an elephant on a white background", ["🦛"]),
        # Spelling.
        ("a ballon", "a balloon", ["ballon"]),
        ("an elefant", "an elephant", ["elefant"]),
        ("a unicron", "a unicorn", ["unicron"]),
        ("a yelllow guitarr", "a yellow guitar", ["yelllow", "guitarr"]),
        ("an icecreem", "an ice cream", ["icecreem"]),
        ("an ice crem", "an ice cream", ["ice crem"]),
        ("a cat on a yellow backgroud", "a cat on a yellow background", ["backgroud"]),
        # Nothing similar: left out if there is a thing, otherwise replaced by the thing with the most similar name.
        ("a cute cat with a zeppelin", "a cat", ["cute", "zeppelin"]),
        ("a cat on a yellow sofa", "a cat on a yellow background", ["sofa"]),
        ("a dog without hat", "a dog and a hat", ["without"]),
        ("three cats", "a cat", ["three"]),
        ("appel", "an apple", ["appel"]),
        ("a blue qqq", "a blue cat", ["qqq"]),
        ("猫", "a cat", ["猫"]),
        ("кот", "a cat", ["кот"]),
        ("😀", "a cat", ["😀"]),
        ("42", "a cat", ["42"]),
    ],
)
def test_unknown_words_get_the_nearest(prompt: str, drawn: str, unknown: list[str]) -> None:
    rewording = rewrite(prompt)
    assert rewording.prompt == drawn
    assert list(rewording.unknown) == unknown
    named = ", ".join(f'"{word}"' for word in unknown)
    assert rewording.notice == f'the model does not know {named}; drawing "{drawn}". It knows 16 things'


@pytest.mark.parametrize(
    ("prompt", "drawn", "left_out"),
    [
        ("a cat, a dog and a whale", "a cat and a dog", ["whale"]),
        ("a cat, a dog and a big red whale", "a cat and a dog", ["big", "red", "whale"]),
        ("a gray cat", "a cat", ["gray"]),
        ("a grey cat", "a cat", ["grey"]),
        ("a red and blue cat", "a blue cat", ["red"]),
        (
            "a red cat on a blue background on a yellow background",
            "a red cat on a blue background",
            ["yellow"],
        ),
        ("a cat on white on a red background", "a cat on a red background", ["white"]),
        ("a cat in flat style, twemoji style", "a cat in flat style", ["twemoji"]),
    ],
)
def test_words_that_cannot_be_drawn_are_left_out(prompt: str, drawn: str, left_out: list[str]) -> None:
    rewording = rewrite(prompt)
    assert rewording.prompt == drawn
    assert list(rewording.left_out) == left_out
    named = ", ".join(f'"{word}"' for word in left_out)
    assert rewording.notice.startswith(f"the model cannot draw {named} here; ")


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("a red", "a red cat"),
        ("yellow background", "a cat on a yellow background"),
        ("a small picture", "a small cat"),
        ("!?", "a cat"),
    ],
)
def test_prompt_without_things_gets_one(prompt: str, drawn: str) -> None:
    rewording = rewrite(prompt)
    assert rewording.prompt == drawn
    assert rewording.notice == f'the prompt names no known thing; drawing "{drawn}". It knows 16 things'


@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.one_of(
                st.sampled_from(sorted({*SMALL_WORLD.known, *SMALL_WORLD.synonyms, *SMALL_WORLD.neighbours})),
                st.text("abcdefghijklmnopqrstuvwxyz-'🐱,é", min_size=1, max_size=9),
            ),
            max_size=12,
        ).map(" ".join),
    )
)
@example("a cat\x00")
@example("\ud800 cat")
@example("ß ŉ ﬁ ǆ İ ١ ⅷ ²")
@example("red red red background")
@example("right of right of cat dog")
@settings(deadline=None)  # Other processes may slow a single example down.
def test_any_text_is_drawn_in_known_words(prompt: str) -> None:
    rewording = rewrite(prompt)
    assert set(split(rewording.prompt)) <= KNOWN
    assert not set(rewording.prompt) & set("\n\r\t")
    assert any(thing in rewording.prompt for thing in SMALL_WORLD.things)
    assert "\n" not in rewording.notice
    assert rewrite(prompt) == rewording
    # What is drawn is a prompt that needs no rewording.
    again = rewrite(rewording.prompt)
    assert (again.prompt, again.notice) == (rewording.prompt, "")


def test_long_prompts_are_read_up_to_64_words_with_a_notice_of_one_line() -> None:
    rewording = rewrite(" ".join(f"{'w' * number}" for number in range(1, 3000)))
    assert "the model does not know" in rewording.notice
    assert f"and {MAX_PROMPT_LENGTH - 6} more and reads at most 64 words" in rewording.notice
    assert len(rewording.notice) < 300
    rewording = rewrite("a cat " + "the " * 100 + "dog")
    assert rewording.prompt == "a cat"
    assert rewording.notice == 'the model reads at most 64 words; drawing "a cat". It knows 16 things'
    assert rewrite("z" * 100_000).prompt == "a cat"


def test_articles() -> None:
    assert [article(noun) for noun in ("apple", "unicorn", "umbrella", "cat")] == ["an", "a", "an", "a"]


def test_model_without_words_reads_any_text(tiny: ModelFolder) -> None:
    assert load_words(tiny.words_file) is None
    rewording = Rewriter.load(tiny.words_file)(" A hippo, in\na pool! ")
    assert (rewording.prompt, rewording.notice) == (" A hippo, in\na pool! ", "")


def test_rewording_needs_neither_jax_nor_torch() -> None:
    script = "import sys, smalti.text.rewording; print({'jax', 'torch', 'tokenizers'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == "set()\n"


def test_words_of_a_model_are_read(worded: ModelFolder) -> None:
    assert load_words(worded.words_file) == SMALL_WORLD
    assert Rewriter.load(worded.words_file)("a kitten").prompt == "a cat"


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda words: words.clear(), "things: field required"),
        (lambda words: words.update(things=[]), "things: tuple should have at least 1 item"),
        (lambda words: words.update(things="cat"), "things: input should be a valid tuple"),
        (lambda words: words["things"].append(3), "things.16: input should be a valid string, not 3"),
        (lambda words: words["things"].append("Cow"), "'Cow' must be a word in lower case"),
        (lambda words: words["things"].append(""), "'' must be a word in lower case"),
        (lambda words: words["things"].append("a  b"), "'a  b' must be a word in lower case"),
        (lambda words: words["things"].append("?"), "'?' must be a word in lower case"),
        (lambda words: words.update(colors=[]), "colors: there is no such key"),
        (lambda words: words["grammar"].remove("and"), "grammar must contain and"),
        (
            lambda words: words["plurals"].append("cows"),
            "plurals refer to 'cows', which is not a known thing",
        ),
        (
            lambda words: words["synonyms"].update(calf="cow"),
            "synonyms refer to 'cow', which is not a known word",
        ),
        (
            lambda words: words["neighbours"].update(calf="red"),
            "neighbours refer to 'red', which is not a known thing",
        ),
    ],
)
def test_invalid_words_are_refused(worded: ModelFolder, tmp_path: Path, edit: Change, problem: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(worded.path, folder)
    file = folder / KNOWN_WORDS_FILE
    words = json.loads(file.read_text())
    edit(words)
    file.write_text(json.dumps(words))
    with pytest.raises(ModelError) as caught:
        Rewriter.load(ModelFolder.open(folder).words_file)
    assert str(caught.value).startswith(f"{file}: {problem}")
    assert "\n" not in str(caught.value)
    problems = find_problems(ModelFolder.open(folder))
    assert str(caught.value) in problems


def test_words_that_are_invalid_json_or_missing(worded: ModelFolder, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(worded.path, folder)
    file = folder / KNOWN_WORDS_FILE
    for content, problem in (
        (b"{", "cannot be read as JSON"),
        (b"[]", "must hold a JSON object, not list"),
    ):
        file.write_bytes(content)
        with pytest.raises(ModelError, match=problem):
            load_words(ModelFolder.open(folder).words_file)
    file.unlink()
    with pytest.raises(ModelError, match=r"words\.json: missing"):
        load_words(ModelFolder.open(folder).words_file)


def test_small_world_has_the_words_of_captions() -> None:
    assert set(SMALL_WORLD.grammar) >= CAPTION_WORDS
