"""Answers to questions are scored by the rules of SQuAD and MLQA, language by language."""

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raymeta.text_metrics import exact_match, squad_tokens, token_f1

MEASURED = [
    ("en", "The cat sat, on the mat!", "a cat sat on mat", 1, 1),
    ("en", "in 1990", "1990", 0, 2 / 3),
    ("en", "“Super Bowl” — 50", "super bowl 50", 1, 1),
    ("en", "anthem of theatre", "an them of the atre", 0, 1 / 3),
    ("en", "A-B testing", "ab testing", 1, 1),
    ("en", "Beyoncé’s father", "Beyonces father", 0, 1 / 2),
    ("en", "$2.5 million", "2.5 million", 1, 1),
    ("es", "¡El gato y la luna!", "un gato y luna", 1, 1),
    ("es", "los años 90", "años 90", 1, 1),
    ("es", "Elena", "el ena", 0, 0),
    ("de", "der große Hund", "ein großer Hund", 0, 1 / 2),
    ("de", "Die Straße des 17. Juni", "Straße des 17 Juni", 1, 1),
    ("de", "eine Dame", "dame", 1, 1),
    ("vi", "những chiếc của là nhà", "nhà", 1, 1),
    ("vi", "thủ đô của Việt Nam", "thủ đô Việt Nam", 1, 1),
    ("ar", "القاهرة، مصر", "قاهرة مصر", 1, 1),
    ("ar", "في الجامعة", "جامعة", 0, 2 / 3),
    ("hi", "भारत की राजधानी।", "भारत राजधानी", 0, 4 / 5),
    ("hi", "a the दिल्ली", "दिल्ली", 0, 1 / 2),
    ("zh", "北京大学。", "北京", 0, 2 / 3),
    ("zh", "在ABC公司 工作", "ABC 公司", 0, 2 / 3),
    ("zh", "1990年", "1990 年", 1, 1),
    ("zh", "《红楼梦》,曹雪芹", "红楼梦 曹雪芹", 1, 1),
    ("zh", "中 国", "中国", 1, 1),
]
"""Language, answer, accepted answer, and what MLQA's evaluation script 1.0 says of them: exact match and F1."""


@pytest.mark.parametrize(("language", "answer", "accepted", "exact", "f1"), MEASURED)
def test_scores_are_those_of_mlqas_evaluation_script(language, answer, accepted, exact, f1):
    assert exact_match(answer, [accepted], language) == exact
    assert token_f1(answer, [accepted], language) == pytest.approx(f1, abs=1e-12)


ARTICLES = {
    "en": {"a", "an", "the"},
    "es": {"un", "una", "unos", "unas", "el", "la", "los", "las"},
    "de": {"ein", "eine", "einen", "einem", "eines", "einer", "der", "die", "das", "den", "dem", "des"},
    "vi": {"của", "là", "cái", "chiếc", "những"},
}


def rules_by_hand(text: str, language: str) -> list[str]:
    """The rules told word by word: lower case, no punctuation, no articles, words at white space, Chinese by character."""
    lowered = "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P") and c not in "$+<=>^`|~")
    if language == "ar":
        lowered = lowered.replace("ال", " ")
    words, word = [], ""
    for character in lowered + " ":
        if character.isalnum() or character == "_":
            word += character
            continue
        words += [" " if word in ARTICLES.get(language, ()) else word, character]
        word = ""
    joined = "".join(words)
    if language == "zh":
        joined = "".join(f" {c} " if "一" <= c <= "龥" else c for c in joined)
    return joined.split()


some_words = st.sampled_from(
    [
        "the", "The", "a", "an", "ein", "der", "El", "la", "của", "là", "ال", "القط", "中文", "北京", "abc", "x-y", "“q”", "$", "+",
        "theatre", "—", "。", "$5", "É", "ß", "don't", "3.5", "\u00a0", "\u200b", "\t", "हिन्दी",
    ]
)  # fmt: skip
texts = st.lists(st.tuples(some_words, st.sampled_from(["", " ", "  "])), max_size=8).map(
    lambda parts: "".join(word + space for word, space in parts)
)


@settings(max_examples=300, deadline=None)
@given(
    answer=texts,
    accepted=st.lists(texts, min_size=1, max_size=3),
    language=st.sampled_from(["en", "es", "de", "vi", "ar", "zh", "fr"]),
)
def test_scores_follow_the_rules_on_any_text(answer, accepted, language):
    found, wanted = rules_by_hand(answer, language), [rules_by_hand(a, language) for a in accepted]
    assert squad_tokens(answer, language) == found
    assert exact_match(answer, accepted, language) == (found in wanted)
    best = 0.0
    for tokens in wanted:
        same = sum((Counter(found) & Counter(tokens)).values())
        precision, recall = same / max(len(found), 1), same / max(len(tokens), 1)
        f1 = 2 * precision * recall / (precision + recall) if same else float(not found and not tokens)
        best = max(best, f1)
    assert token_f1(answer, accepted, language) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "accepted", "score"), [("", [], 1), ("", [""], 1), ("Paris", [], 0), ("", ["Paris"], 0)]
)
def test_a_question_without_an_answer_wants_none(answer, accepted, score):
    assert (exact_match(answer, accepted), token_f1(answer, accepted)) == (score, score)


def test_the_nearest_accepted_answer_counts():
    assert token_f1("the Denver Broncos", ["Carolina", "Broncos", "Denver Broncos"]) == 1.0
    assert exact_match("Broncos", ["Carolina", "the Broncos."]) == 1.0


def test_japanese_and_thai_are_scored_by_character():
    assert squad_tokens("東京タワー 2020年", "ja") == [*"東京タワー", "2020", "年"]
    assert squad_tokens("กรุงเทพ abc", "th") == [*"กรุงเทพ", "abc"]
    assert token_f1("東京", ["東京タワー"], "ja") == pytest.approx(4 / 7)


def test_a_region_does_not_change_the_language():
    assert squad_tokens("der Hund", "de-AT") == squad_tokens("der Hund", "DE") == ["hund"]
