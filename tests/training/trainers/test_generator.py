"""Training the generator: its text tokenizer, its batches and its evaluation."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from smalti.errors import InvalidInputError
from smalti.text.tokenizer import SPECIAL_TOKENS, TextTokenizer
from smalti.training.batches.captioned import CaptionBatches, CaptionedTokens, evaluation_batches
from smalti.training.batches.sources import ShuffledRows
from smalti.training.batches.text_tokenizer import load_tokenizer, make_tokenizer
from smalti.training.data.shards import ShardWriter

CODES, TOKENS = 50, 16
CAPTIONS = ["a red cat", "a blue dog on a yellow background", "an owl", "a green house in flat style"]
SCHEMA = pa.schema([("caption", pa.string()), ("encoding", pa.list_(pa.int32()))])


def write_shards(
    folder: Path, rows: int, splits: tuple[str, ...] = ("train", "validation", "held_out")
) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split in splits:
        with ShardWriter(folder, split, SCHEMA) as writer:
            for row in range(rows):
                codes = generator.integers(0, CODES, TOKENS).tolist()
                writer.write({"caption": f"{CAPTIONS[row % 4]} {row}", "encoding": codes})
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("text")
    make_tokenizer(CAPTIONS * 10, 300, folder)
    return load_tokenizer(folder, 24)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", 40)


def batches(
    shards: Path, tokenizer: TextTokenizer, blank: float = 0.0, replaced: float = 0.0
) -> CaptionBatches:
    data = CaptionedTokens.load(shards, "train", TOKENS, CODES)
    return CaptionBatches(
        data, tokenizer, codes=CODES, size=20, seed=5, blank_captions=blank, replaced_tokens=replaced
    )


def test_the_text_tokenizer_has_the_ids_of_dalle_mini(tmp_path: Path) -> None:
    make_tokenizer(CAPTIONS * 10, 300, tmp_path)
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [made.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert 261 < made.get_vocab_size() <= 300
    assert (tmp_path / "vocab.json").is_file()
    assert (tmp_path / "merges.txt").is_file()
    # A word of all captions is one token; a word of no caption is spelled byte by byte.
    text = load_tokenizer(tmp_path, 12)(["background", "zebra"])
    assert text.attention_mask.sum(1).tolist()[0] < text.attention_mask.sum(1).tolist()[1]
    assert 3 not in text.input_ids


def test_the_decoder_gets_the_tokens_before_each_token(shards: Path, tokenizer: TextTokenizer) -> None:
    batch = batches(shards, tokenizer)(0)
    assert (batch["decoder_input_ids"][:, 0] == CODES).all()
    np.testing.assert_array_equal(batch["decoder_input_ids"][:, 1:], batch["labels"][:, :-1])
    assert batch["attention_mask"].sum(1).min() > 2


def test_captions_stay_with_their_tokens(shards: Path, tokenizer: TextTokenizer) -> None:
    data = CaptionedTokens.load(shards, "train", TOKENS, CODES)
    captions, encodings = data.take(np.arange(40))
    rows = {
        tuple(row): tokenizer([caption]).input_ids[0]
        for caption, row in zip(captions, encodings, strict=True)
    }
    batch = batches(shards, tokenizer)(1)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        np.testing.assert_array_equal(ids, rows[tuple(labels)])


def test_blank_captions_and_replaced_tokens_have_their_shares(shards: Path, tokenizer: TextTokenizer) -> None:
    made = [batches(shards, tokenizer, 0.2, 0.1)(step) for step in range(100)]
    blank = np.concatenate([batch["attention_mask"].sum(1) == 2 for batch in made])
    assert blank.mean() == pytest.approx(0.2, abs=0.03)
    ids = np.concatenate([batch["input_ids"] for batch in made])[blank]
    np.testing.assert_array_equal(ids, np.broadcast_to(tokenizer.unconditional().input_ids, ids.shape))
    given = np.concatenate([batch["decoder_input_ids"] for batch in made])
    labels = np.concatenate([batch["labels"] for batch in made])
    changed = given[:, 1:] != labels[:, :-1]
    # One random token in fifty equals the token that it replaces.
    assert changed.mean() == pytest.approx(0.1 * (1 - 1 / CODES), abs=0.01)
    assert (given[:, 0] == CODES).all()
    assert given[:, 1:].max() < CODES


def test_a_batch_is_a_function_of_its_step(shards: Path, tokenizer: TextTokenizer) -> None:
    one = batches(shards, tokenizer, 0.3, 0.3)
    # Other processes, whose batches these are on a GPU, get the function as bytes.
    other = pickle.loads(pickle.dumps(one))
    made = [one(step) for step in range(6)]
    for step in (5, 0, 3):
        for name, rows in other(step).items():
            np.testing.assert_array_equal(rows, made[step][name])
    assert not np.array_equal(made[0]["decoder_input_ids"], made[2]["decoder_input_ids"])


def test_every_epoch_has_every_row_in_another_order() -> None:
    order = ShuffledRows(10, seed=1)
    epochs = [order.rows_at(start, 10) for start in (0, 10)]
    for rows in epochs:
        assert sorted(rows) == list(range(10))
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(ShuffledRows(10, seed=1).rows_at(7, 6), [*epochs[0][7:], *epochs[1][:3]])
    assert not np.array_equal(ShuffledRows(10, seed=2).rows_at(0, 10), epochs[0])


def test_evaluation_shuffles_captions_and_prefers_held_out_combinations(
    shards: Path, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    made = evaluation_batches(shards, tokenizer, TOKENS, CODES, 10, 25)
    assert {name: len(each) for name, each in made.items()} == {
        "loss": 2,
        "shuffled": 2,
        "seen_combinations": 2,
    }
    held_out = CaptionedTokens.load(shards, "held_out", TOKENS, CODES).take(np.arange(10))[1]
    np.testing.assert_array_equal(made["loss"][0]["labels"], held_out)
    np.testing.assert_array_equal(made["shuffled"][0]["labels"], held_out)
    same = (made["shuffled"][0]["input_ids"] == made["loss"][0]["input_ids"]).all(1)
    assert not same.any()

    own = write_shards(tmp_path / "own", 12, ("train", "validation"))
    assert set(evaluation_batches(own, tokenizer, TOKENS, CODES, 10, 25)) == {"loss", "shuffled"}
    nothing = write_shards(tmp_path / "nothing", 12, ("train",))
    with pytest.raises(InvalidInputError, match="must have a held-out split"):
        evaluation_batches(nothing, tokenizer, TOKENS, CODES, 10, 25)


@pytest.mark.parametrize(
    ("tokens", "codes", "message"),
    [(9, CODES, r"must have 9 tokens, .*, not \[16\]"), (TOKENS, 30, "must be below 30")],
)
def test_tokens_of_another_tokenizer_are_refused(shards: Path, tokens: int, codes: int, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CaptionedTokens.load(shards, "train", tokens, codes)


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match=r"data: .* must have a world, or Parquet shards named train-00000"
    ):
        CaptionedTokens.load(tmp_path, "train", TOKENS, CODES)
