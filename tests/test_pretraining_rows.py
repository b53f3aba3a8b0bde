"""Rows hold every token once, are masked as BERT's and corrupted as T5's, and pair spans as they say."""

from pathlib import Path

import numpy as np
import pytest

from raymeta.episodes import generator
from raymeta.pretraining.frames import Frame
from raymeta.pretraining.plan import plan
from raymeta.pretraining.rows import Row, Rows, corrupted, from_table
from raymeta.pretraining.tokens import SENTENCE, WORD, Documents
from tests.pretrained import OBJECTIVES, frame_of, run_of, text_of, tokenizer_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def rows_of(family: str, folder: Path, several: bool = True, **section) -> Rows:
    run = run_of(family, folder, **section)
    store = text_of(run)
    return Rows(str(store.folder), "train", frame_of(run, store), several, seed=3)


def documents(sizes: list[int], words: int = 3) -> Documents:
    """Documents of numbered tokens; each third token begins a word, each ninth a sentence."""
    start = np.concatenate([[0], np.cumsum(sizes)])
    place = np.arange(start[-1]) - np.repeat(start[:-1], sizes)
    flags = (place % words == 0) * WORD + (place % (3 * words) == 0) * SENTENCE
    return Documents(np.arange(start[-1]) + 100, flags.astype(np.uint8), start)


def frame(objective: str, length: int = 32, **more) -> Frame:
    settings = {
        "mask_rate": 0.15, "whole_words": False, "span": 3.0, "vocabulary": 10_000, "start": (1,), "between": (2,), "end": (2,),
        "special": (0, 1, 2, 3, 4), "mask": 3, "stop": 4 if objective == "clm" else None, "sentinels": tuple(range(50, 90)),
    }  # fmt: skip
    return Frame(objective, length, **settings | more)


SIZES = [1, 2, 3, 5, 8, 13, 27, 28, 29, 30, 31, 32, 33, 60, 100, 333, 2, 2, 2]


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp", "clm", "span"])
def test_packing_loses_no_token_and_no_row_is_too_long(objective, several):
    made, its = documents(SIZES), frame(objective)
    found = plan(made, its, several)
    assert sorted(found.texts) == list(range(len(found.start)))
    tokens = np.concatenate([np.arange(s, s + n) for s, n in zip(found.start, found.size, strict=True)])
    assert np.array_equal(tokens, np.arange(made.start[-1]))  # in order, each once
    room = its.room(found.size, found.last)
    widths = [room[found.texts[a:b]].sum() for a, b in zip(found.row[:-1], found.row[1:], strict=True)]
    assert max(widths) <= its.length
    assert found.last.sum() == len(SIZES)
    if not several:
        assert np.all(np.diff(found.row) == 1)


def test_long_documents_are_cut_between_words_and_evenly():
    found = plan(documents([100]), frame("mlm"), True)
    assert found.size.tolist() == [24, 24, 24, 28]  # at most 30 each, each but the last a multiple of 3
    alone = plan(documents([100], words=1000), frame("mlm"), True)
    assert alone.size.tolist() == [25, 25, 25, 25]


def test_rows_are_all_but_full():
    sizes = np.random.default_rng(0).integers(2, 50, 2000).tolist()
    found = plan(documents(sizes), frame("mlm", length=128), True)
    tokens = sum(sizes) + 2 * len(sizes)
    assert tokens / (len(found) * 128) > 0.995


@pytest.mark.parametrize("family", OBJECTIVES)
def test_every_token_of_the_text_is_in_one_row_of_each_pass(family, folder):
    rows = rows_of(family, folder, mask_rate=0.15)
    store = text_of(run_of(family, folder))
    tokens = np.sort(np.array(store.documents("train").tokens))
    passes = []
    for epoch in range(2):
        found = [rows.row(epoch * len(rows) + i) for i in range(len(rows))]
        passes.append([row["ids"].tobytes() for row in found])
        if family != "bert":  # half of its second spans are from elsewhere
            assert np.array_equal(np.sort(np.concatenate([_whole(row, rows.frame) for row in found])), tokens)
        assert all(len(row["ids"]) <= 32 for row in found)
        assert all(row["sizes"].sum() == len(row["ids"]) for row in found)
    assert passes[0] != passes[1]


def _whole(row: Row, frame: Frame) -> np.ndarray:
    """The tokens that a row was made of, without those around them."""
    if "answer" in row:
        both = np.concatenate([row["ids"], row["answer"]])
        return both[~np.isin(both, [*frame.sentinels, *frame.end])]
    ids = row["ids"].copy()
    if frame.mask is not None:
        ids[row["places"]] = row["targets"]
    return ids[
        ~np.isin(ids, [*frame.start, *frame.between, *frame.end, *([frame.stop] if frame.stop is not None else [])])
    ]


@pytest.mark.parametrize("family", OBJECTIVES)
def test_a_row_is_the_same_whenever_and_however_it_is_made(family, folder):
    rows = rows_of(family, folder)
    numbers = [5, 2, len(rows) + 1, 5]
    tabled = from_table(rows.table(numbers))
    for number, row in zip(numbers, tabled, strict=True):
        again = rows.row(number)
        assert row.keys() == again.keys()
        assert all(np.array_equal(row[name], again[name]) for name in row)
    assert not np.array_equal(rows.row(0)["ids"], rows.row(len(rows))["ids"])


def masked(rows: Rows, passes: int) -> list[tuple[Row, np.ndarray]]:
    """Rows, and their tokens before masking."""
    found = []
    for number in range(passes * len(rows)):
        row = rows.row(number)
        ids = row["ids"].copy()
        ids[row["places"]] = row["targets"]
        found.append((row, ids))
    return found


def test_a_share_of_tokens_is_masked_80_10_10_and_special_ones_never(folder):
    rows = rows_of("roberta", folder)
    special, its = list(rows.frame.special), rows.frame
    found = masked(rows, 30)
    ordinary = sum(int((~np.isin(ids, special)).sum()) for _, ids in found)
    places = np.concatenate([row["ids"][row["places"]] for row, _ in found])
    targets = np.concatenate([row["targets"] for row, _ in found])
    n = len(targets)
    assert not np.isin(targets, special).any()
    assert abs(n / ordinary - 0.15) < 4 * np.sqrt(0.15 * 0.85 / ordinary)  # four standard errors
    became_mask, stayed = places == its.mask, places == targets
    other = ~became_mask & ~stayed
    for share, wanted in ((became_mask.mean(), 0.8), (other.mean(), 0.1 * (1 - 1 / len(its.ordinary)))):
        assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / n)
    assert not np.isin(places[other], special).any()
    drawn = np.unique(places[other])
    assert len(drawn) > len(its.ordinary) / 2  # from the whole vocabulary
    for row, _ in found:
        outside = np.setdiff1d(np.arange(len(row["ids"])), row["places"])
        assert not (row["ids"][outside] == its.mask).any()


def test_whole_words_are_masked_or_left_and_as_many_tokens_in_all(folder):
    rows = rows_of("distilbert", folder, whole_words=True)
    tokenizer = tokenizer_of(rows.folder)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    found = masked(rows, 20)
    chosen = total = parted = 0
    for row, ids in found:
        scored = np.isin(np.arange(len(ids)), row["places"])
        later = np.array([pieces[i].startswith("##") for i in ids])
        later &= np.roll(ids, 1) != rows.frame.start[0]  # a long text may be cut within a word
        assert np.array_equal(scored[later], scored[np.flatnonzero(later) - 1])
        parted += int(later.sum())
        chosen += int(scored.sum())
        total += int((~np.isin(ids, rows.frame.special)).sum())
    assert parted > 1000
    assert abs(chosen / total - 0.15) < 0.01
    kept_apart = 0
    for row, ids in masked(rows_of("distilbert", folder), 1):
        scored = np.isin(np.arange(len(ids)), row["places"])
        later = np.flatnonzero([pieces[i].startswith("##") for i in ids])
        kept_apart += int((scored[later] != scored[later - 1]).sum())
    assert kept_apart  # without the setting, pieces are masked one by one


def test_pairs_are_what_their_labels_say(folder):
    rows = rows_of("bert", folder, mask_rate=1e-9)  # nothing is masked
    store = text_of(run_of("bert", folder))
    made, its = store.documents("train"), rows.frame
    texts = [made.tokens[a:b].tolist() for a, b in zip(made.start[:-1], made.start[1:], strict=True)]
    parts = {tuple(text[i:j]) for text in texts for i in range(len(text)) for j in range(i + 1, len(text) + 1)}
    follows = other = 0
    for number in range(4 * len(rows)):
        row = rows.row(number)
        ends = np.cumsum(row["sizes"])
        for end, size, label in zip(ends, row["sizes"], row["follows"], strict=True):
            ids, types = row["ids"][end - size : end], row["types"][end - size : end]
            assert ids[0] == its.start[0]
            assert ids[-1] == its.end[0]
            if label == -100:
                assert not types.any()
                continue
            first, second = ids[types == 0][1:-1], ids[types == 1][:-1]
            assert ids[types == 0][-1] == its.between[0]
            assert len(first)
            assert len(second)
            if label == 1:
                assert (*first, *second) in parts
                follows += 1
            else:
                assert tuple(second) in parts
                other += 1
    assert abs(follows / (follows + other) - 0.5) < 4 * np.sqrt(0.25 / (follows + other))


def test_a_second_span_from_elsewhere_is_never_of_the_same_document():
    from raymeta.pretraining.rows import _elsewhere

    made = documents([100, 3, 40, 1])
    found = plan(made, frame("mlm+nsp"), True)
    owner = np.repeat(np.arange(4), [100, 3, 40, 1])
    for start in (0, 50, 101, 120, 143):
        seen = set()
        for number in range(200):
            first, last = _elsewhere(made, found, start, 7, generator(0, "x", number))
            assert 0 < last - first <= 7
            assert len(set(owner[first:last])) == 1
            seen.add(int(owner[first]))
        assert seen == {0, 1, 2, 3} - {int(owner[start])}


@pytest.mark.parametrize("rate", [0.15, 0.5, 0.02, 0.9])
def test_span_corruption_is_undone_by_putting_each_span_in_the_place_of_its_sentinel(rate):
    its = frame("span", mask_rate=rate, span=3.0, sentinels=tuple(range(10_000, 10_200)))
    for size in [*range(1, 40), 333]:
        tokens = np.arange(size) + 100
        kept, gone = corrupted(tokens, its, generator(1, "span", size))
        spans: dict[int, list[int]] = {}
        for token in gone.tolist():
            if token in its.sentinels:
                spans[token] = []
            else:
                spans[next(reversed(spans))].append(token)
        assert list(spans) == list(its.sentinels[: len(spans)])
        back = [t for token in kept.tolist() for t in spans.get(token, [token])]
        assert back == tokens.tolist()
        missing, count = (int(n[0]) for n in its.missing(np.array([size])))
        assert (sum(map(len, spans.values())), len(spans)) == (missing, count)
        assert its.room(np.array([size]), np.array([True]))[0] == len(kept) + 2
        if size >= 20:
            assert missing == max(1, round(size * rate))


def test_mean_span_and_rate_are_those_of_t5():
    # Raffel et al. 2020: of 512 tokens 15 % in spans of 3 on average: 77 tokens in 26 spans
    missing, spans = frame("span").missing(np.array([512]))
    assert (missing[0], spans[0]) == (77, 26)


def test_causal_rows_predict_each_token_from_those_before_and_the_end_of_a_document(folder):
    for family in ("gpt2", "llama"):
        rows = rows_of(family, folder)
        tokenizer = tokenizer_of(rows.folder)
        ends = 0
        for number in range(len(rows)):
            row = rows.row(number)
            assert np.array_equal(row["targets"], row["ids"][row["places"] + 1])
            assert len(row["places"]) == len(row["ids"]) - len(row["sizes"])
            assert not np.isin(np.cumsum(row["sizes"]) - 1, row["places"]).any()
            ends += int((row["targets"] == tokenizer.eos_token_id).sum())
            if family == "llama":
                begins = np.cumsum(row["sizes"]) - row["sizes"]
                assert (row["ids"][begins] == tokenizer.bos_token_id).all()
        assert ends == text_of(run_of(family, folder)).summary["train"]["documents"]
