"""A new tokenizer has its family's special tokens, is the same each time, and says what a text supports."""

import pytest
from transformers import AutoTokenizer

from raymeta.errors import UserError
from raymeta.pretraining import SENTINELS, Family, NewTokenizer
from raymeta.pretraining.frames import around
from raymeta.pretraining.vocabulary import SPECIAL, trained
from tests.pretrained import TEXT
from tests.small import INTENTS

TEXTS = [*(row["text"] for row in INTENTS), *TEXT.splitlines()]
KINDS = ["wordpiece", "byte_bpe", "unigram"]
SIZES = {"wordpiece": 300, "byte_bpe": 330, "unigram": 200}


def made(kind: str, family: Family = "bert", size: int | None = None, lowercase: bool = False):
    sentinels = SENTINELS if family == "t5" and size is None else 0
    settings = NewTokenizer(kind=kind, size=size or SIZES[kind] + sentinels, lowercase=lowercase)
    return trained(settings, family, lambda: iter(TEXTS), 64)


@pytest.mark.parametrize("family", SPECIAL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same_and_has_what_its_family_needs(kind, family, tmp_path):
    tokenizer = made(kind, family, lowercase=True)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = 'The Ship left; "Where?"'
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert len(loaded) == SIZES[kind] + (SENTINELS if family == "t5" else 0)
    assert loaded.model_max_length == 64
    for name, token in SPECIAL[family].items():
        assert getattr(loaded, name) == token
    assert loaded.convert_tokens_to_ids(next(iter(SPECIAL[family].values()))) == 0
    said = loaded.decode(loaded(text, add_special_tokens=False)["input_ids"]).replace(" ", "").lower()
    assert said == text.replace(" ", "").lower()
    if family in ("gpt2", "llama"):
        assert loaded.pad_token is None
    if family == "t5":
        ids = loaded.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(SENTINELS)])
        assert ids == [len(loaded) - 1 - i for i in range(SENTINELS)]  # as T5's
        assert loaded("a <extra_id_3> b")["input_ids"].count(ids[3]) == 1


FRAMES = {
    "bert": (["[CLS]"], ["[SEP]"], ["[SEP]"]), "distilbert": (["[CLS]"], ["[SEP]"], ["[SEP]"]),
    "roberta": (["<s>"], ["</s>", "</s>"], ["</s>"]), "gpt2": ([], [], []), "llama": (["<s>"], ["<s>"], []),
    "t5": ([], ["</s>"], ["</s>"]),
}  # fmt: skip


@pytest.mark.parametrize("family", FRAMES)
def test_what_stands_around_texts_is_the_familys(family):
    tokenizer = made("byte_bpe", family)
    assert tuple(tokenizer.convert_ids_to_tokens(list(ids)) for ids in around(tokenizer)) == FRAMES[family]


def test_berts_second_text_is_of_the_second_type():
    tokenizer = made("wordpiece")
    found = tokenizer("the ship", "left", return_token_type_ids=True)
    first = found["input_ids"].index(tokenizer.sep_token_id) + 1
    assert 0 < first < len(found["input_ids"])
    assert found["token_type_ids"] == [0] * first + [1] * (len(found["input_ids"]) - first)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe"])
def test_the_same_text_gives_the_same_ids(kind):
    assert made(kind).backend_tokenizer.to_str() == made(kind).backend_tokenizer.to_str()


def test_byte_bpe_knows_every_text():
    tokenizer = made("byte_bpe", "gpt2")
    text = "naïve 日本語 🎉 \x07"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_lower_casing_is_a_setting():
    for kind in KINDS:
        upper, lower = (made(kind, lowercase=setting)("The")["input_ids"] for setting in (False, True))
        assert upper != made(kind)("the")["input_ids"]
        assert lower == made(kind, lowercase=True)("the")["input_ids"]


MISTAKES = [
    ("wordpiece", "bert", 9000, r"size: 9000 pieces were asked for, but this text supports \d+; lower it"),
    ("byte_bpe", "gpt2", 9000, r"size: 9000 pieces were asked for, but this text supports \d+; lower it"),
    ("unigram", "t5", 9000, r"size: 9000 pieces were asked for, but this text supports \d+; lower it"),
    ("byte_bpe", "gpt2", 200, "size: 200 pieces are too few, byte_bpe needs 257"),
    ("wordpiece", "bert", 40, r"size: 40 pieces are too few, wordpiece needs \d+"),
    ("unigram", "t5", 102, "size: 102 pieces leave none beside the 103 special tokens of a t5 type"),
]


@pytest.mark.parametrize(("kind", "family", "size", "says"), MISTAKES, ids=[f"{k}-{s}" for k, _, s, _ in MISTAKES])
def test_a_size_that_the_text_does_not_bear_is_one_message(kind, family, size, says):
    with pytest.raises(UserError, match=says):
        made(kind, family, size)
