"""Tokenizing prompts."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing

from smalti.errors import InvalidInputError, ModelError
from smalti.testing.tokenizer import tiny_tokenizer_files
from smalti.text.tokenizer import (
    MERGES_FILE,
    SPECIAL_TOKENS,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    WORDS_FILE,
    TextTokenizer,
    copy_text_files,
)

START, PAD, END = 0, 1, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    tiny_tokenizer_files(folder)
    return folder


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> dict[str, int]:
    ids: dict[str, int] = json.loads((folder / VOCABULARY_FILE).read_text(encoding="utf-8"))
    return ids


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> TextTokenizer:
    return TextTokenizer.load(folder, max_text_length=8, normalize=True)


@pytest.fixture(scope="module")
def literal(folder: Path) -> TextTokenizer:
    """Tokenizer without normalisation."""
    return TextTokenizer.load(folder, max_text_length=64, normalize=False)


def copy(folder: Path, target: Path, *names: str) -> Path:
    for name in names:
        (target / name).write_bytes((folder / name).read_bytes())
    return target


def test_prompt_becomes_words_between_start_and_end(
    tokenizer: TextTokenizer, vocabulary: dict[str, int]
) -> None:
    text = tokenizer(["A red cat!"])
    words = [vocabulary[word] for word in ("Ġa", "Ġred", "Ġcat")]
    assert text.input_ids.tolist() == [[START, *words, END, PAD, PAD, PAD]]
    assert text.attention_mask.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert text.input_ids.dtype == text.attention_mask.dtype == np.int32
    assert text.normalized == (" a red cat",)


def test_long_prompt_is_cut_and_still_ends(tokenizer: TextTokenizer, vocabulary: dict[str, int]) -> None:
    text = tokenizer(["a " * 6, "a " * 7])
    assert text.cut == (False, True)
    assert text.input_ids.tolist() == [[START, *[vocabulary["Ġa"]] * 6, END]] * 2
    assert text.attention_mask.tolist() == [[1] * 8] * 2
    assert text.normalized[1] == " a a a a a a a"


def test_prompts_do_not_depend_on_their_batch(tokenizer: TextTokenizer) -> None:
    prompts = ["a red cat", "the blue dog on the car by night", ""]
    together = tokenizer(prompts)
    for row, prompt in enumerate(prompts):
        alone = tokenizer([prompt])
        assert together.input_ids[row].tolist() == alone.input_ids[0].tolist()
        assert together.attention_mask[row].tolist() == alone.attention_mask[0].tolist()
        assert (together.cut[row], together.normalized[row]) == (alone.cut[0], alone.normalized[0])


def test_no_prompts_give_an_empty_batch(tokenizer: TextTokenizer) -> None:
    text = tokenizer([])
    assert text.input_ids.shape == text.attention_mask.shape == (0, 8)
    assert text.cut == text.normalized == ()


def test_unconditional_prompt_is_not_normalised(tokenizer: TextTokenizer, vocabulary: dict[str, int]) -> None:
    text = tokenizer.unconditional()
    assert text.input_ids.tolist() == [[START, END, PAD, PAD, PAD, PAD, PAD, PAD]]
    assert text.attention_mask.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0]]
    assert text.normalized == ("",)
    # The empty prompt of a user is a space.
    assert tokenizer([""]).input_ids[0, :3].tolist() == [START, vocabulary["Ġ"], END]


def test_without_normalisation_the_prompt_is_unchanged(
    literal: TextTokenizer, vocabulary: dict[str, int]
) -> None:
    text = literal(["A red cat"])
    assert text.normalized == ("A red cat",)
    # No space is put before the first word.
    assert text.input_ids[0, :5].tolist() == [
        START, vocabulary["A"], vocabulary["Ġred"], vocabulary["Ġcat"], END
    ]  # fmt: skip


def test_half_of_a_surrogate_pair_is_refused(literal: TextTokenizer) -> None:
    with pytest.raises(InvalidInputError, match="surrogate") as raised:
        literal(["a \ud83d cat"])
    assert raised.value.field == "prompt"


def has_no_special_token(prompt: str) -> bool:
    return not any(token in prompt for token in SPECIAL_TOKENS)


@settings(deadline=None)
@given(
    st.text(max_size=10).filter(has_no_special_token)
    | st.lists(st.sampled_from([" red", " cat", "avo", "ado", "  "])).map("".join)
)
def test_any_text_is_split_as_by_the_library_and_decodes_to_itself(
    folder: Path, literal: TextTokenizer, prompt: str
) -> None:
    text = literal([prompt])
    if not text.cut[0]:
        ids = text.input_ids[0][text.attention_mask[0] == 1].tolist()
        reference = ByteLevelBPETokenizer(str(folder / VOCABULARY_FILE), str(folder / MERGES_FILE))
        assert ids == [START, *reference.encode(prompt).ids, END]
        assert reference.decode(ids[1:-1]) == prompt


def test_a_special_token_in_the_prompt_is_read_as_one(
    literal: TextTokenizer, vocabulary: dict[str, int]
) -> None:
    # <mask> replaces a word together with its space, as in BART.
    ids = literal([" red <mask></s> cat"]).input_ids[0, :6].tolist()
    assert ids == [START, vocabulary["Ġred"], vocabulary["<mask>"], END, vocabulary["Ġcat"], END]


def test_both_forms_of_files_are_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    prompts = ["a red cat <mask> and dogs", "</s>", "é 🥑"]
    whole = copy(folder, tmp_path, TOKENIZER_FILE)
    first = TextTokenizer.load(whole, max_text_length=24, normalize=False)
    (whole / TOKENIZER_FILE).unlink()
    parts = copy(folder, tmp_path, VOCABULARY_FILE, MERGES_FILE)
    second = TextTokenizer.load(parts, max_text_length=24, normalize=False)
    assert first(prompts).input_ids.tolist() == second(prompts).input_ids.tolist()
    assert first.vocabulary_size == second.vocabulary_size


def test_lengths_and_layout_in_the_file_are_ignored(
    folder: Path, tmp_path: Path, vocabulary: dict[str, int]
) -> None:
    file = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    file.enable_truncation(max_length=1)
    file.enable_padding(length=100)
    file.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", START), ("</s>", END)]
    )
    file.save(str(tmp_path / TOKENIZER_FILE))
    text = TextTokenizer.load(tmp_path, max_text_length=6, normalize=True)(["red cat"])
    assert text.input_ids.tolist() == [[START, vocabulary["Ġred"], vocabulary["Ġcat"], END, PAD, PAD]]
    assert text.cut == (False,)


def test_special_ids_are_those_of_the_vocabulary(tmp_path: Path) -> None:
    ids = {"Ġ": 0, "a": 1, "</s>": 2, "<pad>": 3, "<s>": 4, "Ġa": 5}
    (tmp_path / VOCABULARY_FILE).write_text(json.dumps(ids), encoding="utf-8")
    (tmp_path / MERGES_FILE).write_text("#version: 0.2\nĠ a\n", encoding="utf-8")
    tokenizer = TextTokenizer.load(tmp_path, max_text_length=5, normalize=True)
    assert tokenizer(["a"]).input_ids.tolist() == [[4, 5, 2, 3, 3]]
    assert tokenizer.unconditional().input_ids.tolist() == [[4, 2, 3, 3, 3]]
    assert tokenizer.vocabulary_size == 6


def test_words_beside_the_tokenizer_split_hashtags(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path, TOKENIZER_FILE)
    unsplit = TextTokenizer.load(tmp_path, max_text_length=8, normalize=True)
    (tmp_path / WORDS_FILE).write_text("red 2\ncat 1\n", encoding="utf-8")
    split = TextTokenizer.load(tmp_path, max_text_length=8, normalize=True)
    assert unsplit(["#redcat"]).normalized == (" redcat",)
    assert split(["#redcat"]).normalized == (" red cat",)


@pytest.mark.parametrize("words", ["red 2\ncat 1\n", None])
def test_saved_tokenizer_is_the_same(folder: Path, tmp_path: Path, words: str | None) -> None:
    source, target = tmp_path / "source", tmp_path / "made" / "target"
    source.mkdir()
    copy(folder, source, TOKENIZER_FILE)
    if words:
        (source / WORDS_FILE).write_text(words, encoding="utf-8")
    first = TextTokenizer.load(source, max_text_length=12, normalize=True)
    first.save(target)
    second = TextTokenizer.load(target, max_text_length=12, normalize=True)
    prompts = ["a red cat and #redcat", "on the car"]
    assert second(prompts).input_ids.tolist() == first(prompts).input_ids.tolist()
    names = {TOKENIZER_FILE, VOCABULARY_FILE, MERGES_FILE} | ({WORDS_FILE} if words else set())
    assert {path.name for path in target.iterdir()} == names


def test_files_are_copied_unchanged(folder: Path, tmp_path: Path) -> None:
    (folder / "else.txt").write_text("of another kind")
    copy_text_files(folder, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {TOKENIZER_FILE, VOCABULARY_FILE, MERGES_FILE}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_the_tiny_tokenizer_is_the_same_each_time(folder: Path, tmp_path: Path) -> None:
    size = tiny_tokenizer_files(tmp_path / "again")
    assert size == TextTokenizer.load(folder, max_text_length=8, normalize=True).vocabulary_size
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "has no text tokenizer; add tokenizer.json, or vocab.json and merges.txt"),
        ({VOCABULARY_FILE: "{}"}, "has no text tokenizer"),
        ({TOKENIZER_FILE: '{"version": "1.0"'}, "tokenizer.json: cannot be read as a tokenizer"),
        ({TOKENIZER_FILE: "{}"}, "tokenizer.json: cannot be read as a tokenizer"),
        ({VOCABULARY_FILE: "[]", MERGES_FILE: ""}, "vocab.json and merges.txt are not a valid tokenizer"),
        (
            {VOCABULARY_FILE: '{"a": 0}', MERGES_FILE: "a b"},
            "vocab.json and merges.txt are not a valid tokenizer",
        ),
        ({VOCABULARY_FILE: '{"<s>": 0, "<pad>": 1}', MERGES_FILE: ""}, "vocabulary has no </s>"),
    ],
)
def test_invalid_files_are_refused_in_one_line(tmp_path: Path, files: dict[str, str], problem: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError) as raised:
        TextTokenizer.load(tmp_path, max_text_length=8, normalize=True)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_length_without_room_for_text_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="max_text_length: 2 leaves no room"):
        TextTokenizer.load(folder, max_text_length=2, normalize=True)
