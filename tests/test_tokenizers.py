"""Kinds that need to know where words stand do so with every type of tokenizer: without a pad token, of bytes, of sentencepiece."""

import numpy as np
import pytest
import torch

from raymeta.tasks._windows import template
from raymeta.tasks._words import pieces, specials
from raymeta.tasks.classification import Classification
from raymeta.tasks.entities import Entities
from raymeta.tasks.qa import Qa
from raymeta.tasks.relations import Relations, marker_ids
from tests.tokenizers_of import TOKENIZERS

WORDS = ["Wie", "lange", "haben", "the", "chest", "pain?", "fièvre", "transfer"]
ODD = ["\u200b", "", " ", "\u00a0", "北京", "🎉", "\x00"]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def plain(text):
    """A text as any of the tokenizers would write it again."""
    return "".join(text.lower().replace("è", "e").split())


def test_pieces_of_words_are_those_of_the_text(tokenizer):
    found = pieces(tokenizer, [WORDS, ["a", *ODD, "b"]])
    joined = tokenizer(" ".join(WORDS), add_special_tokens=False)["input_ids"]
    assert [i for word in found[0] for i in word] == joined
    assert [plain(tokenizer.decode(word)) for word in found[0]] == [plain(word) for word in WORDS]
    assert all(found[1])
    assert len(found[1]) == len(ODD) + 2


def test_every_kind_reads_the_same_words(tokenizer):
    before, after = specials(tokenizer)
    classified = Classification().encode([{"text": " ".join(WORDS), "label": "x"}], tokenizer, 64)[0]
    tagged = Entities().encode([{"tokens": WORDS, "tags": ["O"] * 8}], tokenizer, 64)[0]
    assert classified["ids"] == tagged["ids"]
    assert tagged["ids"][: len(before)] == before
    assert after == [] or tagged["ids"][-len(after) :] == after


def test_words_of_entities_start_where_they_stand(tokenizer):
    tokens = [*WORDS[:4], *ODD, *WORDS[4:]]
    found = Entities().encode([{"tokens": tokens, "tags": ["B-x"] * len(tokens)}], tokenizer, 200)[0]
    assert len(found["first"]) == len(set(found["first"])) == len(tokens)
    stops = [*found["first"][1:], len(found["ids"]) - len(specials(tokenizer)[1])]
    there = [plain(tokenizer.decode(found["ids"][a:b])) for a, b in zip(found["first"], stops, strict=True)]
    assert [t for t, w in zip(there, tokens, strict=True) if w in WORDS] == [plain(w) for w in WORDS]


@pytest.mark.parametrize("tokens", [WORDS, " ".join(WORDS)], ids=["words", "text"])
def test_entities_of_a_relation_stand_between_their_markers(tokenizer, tokens):
    spans = {"head_start": 6, "head_end": 8, "tail_start": 1, "tail_end": 3}
    if isinstance(tokens, str):
        at = [tokens.index(w) for w in ("fièvre", "transfer", "lange", "haben")]
        spans = {"head_start": at[0], "head_end": at[1] + 8, "tail_start": at[2], "tail_end": at[3] + 5}
    found = Relations().encode([{"tokens": tokens, "label": "r", **spans}], tokenizer, 64)[0]
    signs = marker_ids(tokenizer)
    for side, words in enumerate((WORDS[6:8], WORDS[1:3])):
        start, end = found["marks"][2 * side : 2 * side + 2]
        inside = found["ids"][start + 1 : end + 1 - len(signs[2 * side + 1])]
        assert plain(tokenizer.decode(inside)) == plain("".join(words))


@pytest.mark.parametrize("answer", ["chest pain", "Symptome schon", "fièvre", "漏", "持续多久"])
def test_an_answer_is_marked_where_its_characters_are(tokenizer, answer):
    context = "Wie lange haben Sie diese Symptome schon? All chest pain, und fièvre: 这些症状持续多久了?漏"
    kind = Qa()
    rows = [{"question": "how long?", "context": context, "answer": answer}]
    found = kind.encode(rows, tokenizer, 256)[0]
    made = kind.examples({k: [v] for k, v in found.items()}, np.arange(1), ("a",))
    codes = kind.targets(made)
    first, last = int((codes % 2).argmax()) - 1, int((codes % 4 // 2).argmax()) - 1
    marked = context[int(made.extra["starts"][first]) : int(made.extra["ends"][last])]
    assert answer in marked
    assert len(marked) <= len(answer) + 12  # unigram pieces and unknown ones may reach further
    scores = torch.zeros(len(codes), 2)
    scores[first + 1, 0] = scores[last + 1, 1] = 9.0
    assert kind.answers(scores, made, ("a",), rows) == [marked]


def test_question_and_context_have_something_between_them(tokenizer):
    kind, (_, between, _) = Qa(), template(tokenizer)
    assert between
    found = kind.encode([{"question": "chest", "context": "chest pain", "answer": "pain"}], tokenizer, 64)[0]
    question = tokenizer("chest", add_special_tokens=False)["input_ids"]
    first = found["first"][0]
    assert found["ids"][first - len(between) - len(question) : first] == [*question, *between]
    assert plain(tokenizer.decode(found["ids"][first : first + found["held"][0]])) == "chestpain"
