"""SMLMT: N words are the classes, sentences that hold one of them, masked, and none of the others are the examples."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from raymeta.config import Run
from raymeta.episodes import Pool
from raymeta.errors import UserError
from raymeta.model import Backbone
from raymeta.prepare import prepare
from raymeta.stages.metatrain import metatrain
from raymeta.store import Prepared
from raymeta.stream import Source
from raymeta.tasks.smlmt import Smlmt
from raymeta.track import rows
from tests.small import as_jsonl, ready

CORPUS = {"kind": "quickstart", "part": "intents"}
TASKS = {
    "kind": "smlmt", "ways": 4, "shots": 2, "queries": 2, "words": {"min_count": 8, "max_count": 100},
    "split": {"validation": 6, "test": 6},
}  # fmt: skip
TEXTS = [
    "Play some jazz, please play it loud",
    "the café plays old jazz",
    "don't stop",
    "play some jazz, please play it loud",
    "unbelievably loud music",
    "42 7 !!",
]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_folder):
    return Backbone(name=tiny_tokenizer_folder).tokenizer()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_tokenizer_folder) -> Prepared:
    return ready(tmp_path_factory.mktemp("smlmt"), tiny_tokenizer_folder, CORPUS, TASKS)[0]


def source(prepared: Prepared, split: str = "train", **changes: object) -> Source:
    return Source(str(prepared.folder), Smlmt.model_validate({**TASKS, **changes}), split, 0)


def texts_of(tokenizer, examples) -> list[str]:
    ends = examples.lengths.cumsum(0).tolist()
    return [tokenizer.decode(examples.ids[e - n : e]) for e, n in zip(ends, examples.lengths.tolist(), strict=True)]


def words_of(text: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.replace(" ' ", "'"))}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_masked_word_and_those_of_the_other_classes_are_nowhere_in_an_example(prepared, tokenizer, split):
    episodes = source(prepared, split)
    for number in range(60):
        episode = episodes.episode(number)
        assert len(set(episode.classes)) == 4
        seen = [*episode.support.rows.tolist(), *episode.query.rows.tolist()]
        assert len(set(seen)) == len(seen) == 16
        for side in (episode.support, episode.query):
            assert torch.bincount(side.extra["labels"], minlength=4).tolist() == [2] * 4
            for text in texts_of(tokenizer, side):
                assert "[MASK]" in text
                assert words_of(text.replace("[MASK]", "")).isdisjoint(episode.classes)


def test_an_example_is_its_text_with_one_mask_for_each_occurrence_of_the_word(prepared, tokenizer):
    whole = source(prepared)
    for number in range(30):
        episode = whole.episode(number)
        pairs = zip(texts_of(tokenizer, episode.support), episode.support.extra["labels"].tolist(), strict=True)
        for (text, label), row in zip(pairs, episode.support.rows, strict=True):
            word = episode.classes[label]
            unmasked = tokenizer.decode(prepared.take(np.array([row]))["ids"][0])
            pattern = rf"(?<![\w'])(?<!' ){re.escape(word).replace(chr(39), ' ?.. ?')}(?![\w'])(?! ')"
            assert re.sub(pattern, "[MASK]", unmasked, flags=re.IGNORECASE) == text


def test_words_are_masked_in_every_case_and_with_all_their_pieces(tokenizer):
    tasks = Smlmt(words={"min_count": 2, "max_count": 9})
    encoded = tasks.encode([{"text": text} for text in TEXTS], tokenizer, 64)
    assert encoded[0]["classes"] == ["play", "some", "jazz", "please", "loud"]  # `it` is too short
    assert encoded[0]["counts"] == [2, 1, 1, 1, 1]
    assert encoded[1]["classes"] == ["the", "cafe", "plays", "old", "jazz"]  # this tokenizer leaves accents out
    assert encoded[2]["classes"] == ["don't", "stop"]
    assert encoded[5]["classes"] == []
    assert encoded[0]["key"] == encoded[3]["key"]
    assert len({tuple(e["key"]) for e in encoded}) == 5
    table = {name: [encoded[i][name] for i in (0, 4)] for name in encoded[0]}
    examples = tasks.examples(table, np.array([0, 4]), ["unbelievably", "play"])
    assert examples.extra["labels"].tolist() == [1, 0]
    assert examples.extra["each"].tolist() == [2, 1]
    assert texts_of(tokenizer, examples) == [
        "[CLS] [MASK] some jazz, please [MASK] it loud [SEP]",
        "[CLS] [MASK] loud music [SEP]",
    ]
    assert (examples.ids[examples.extra["masks"]] == tokenizer.mask_token_id).all()
    assert int((examples.ids == tokenizer.mask_token_id).sum()) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a b", None),
        (["a", "b"], None),
        (7, "text is int '7', not a string or a list of words"),
        (["a", 7], "text is list"),
        (None, "text is missing"),
        (" ", "text is empty"),
        ([], "text is empty"),
    ],
)
def test_a_text_is_a_string_or_a_list_of_words(text, says, tokenizer):
    fault = Smlmt().fault({"text": text})
    assert fault is None if says is None else str(fault).startswith(says)
    if says is None:
        encoded = Smlmt(words={"min_length": 1}).encode([{"text": text}], tokenizer, 64)
        assert encoded[0]["classes"] == ["a", "b"]


def test_a_word_that_is_cut_or_unknown_is_no_class(tokenizer):
    text = "some unbelievably"
    whole = tokenizer(text)["input_ids"]
    tasks = Smlmt()
    assert tasks.encode([{"text": text}], tokenizer, len(whole))[0]["classes"] == ["some", "unbelievably"]
    cut = tasks.encode([{"text": text}], tokenizer, len(whole) - 1)[0]
    assert cut["classes"] == ["some"]
    assert cut["cut"]
    assert tasks.encode([{"text": "some 音楽音楽 table"}], tokenizer, 64)[0]["classes"] == ["some", "table"]


def test_byte_pieces_that_hold_the_space_before_a_word_are_masked_alike(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("p", "l"), ("pl", "ay"), ("a", "y"), ("Ġ", "play")]
    pieces = ["<s>", "</s>", "<pad>", "<mask>", "<unk>", *letters, "pl", "ay", "play", "Ġplay"]
    merges = [("p", "l"), ("a", "y"), ("pl", "ay"), ("Ġ", "play")]
    made = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    byte_level = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", mask_token="<mask>", unk_token="<unk>"
    )  # fmt: skip
    tasks = Smlmt()
    tasks.check(byte_level)
    encoded = tasks.encode([{"text": "Play and play"}], byte_level, 64)
    assert encoded[0]["classes"] == ["play", "and"]
    table = {name: [row[name] for row in encoded] for name in encoded[0]}
    found = tasks.examples(table, np.array([0]), ["play", "x"])
    assert found.extra["each"].tolist() == [2]
    assert "play" not in byte_level.decode(found.ids).lower()


def test_validation_and_test_words_are_never_a_class_in_training(prepared):
    splits = prepared.summary["splits"]
    assert (splits["validation"]["classes"], splits["test"]["classes"]) == (6, 6)
    met = {
        split: {c for n in range(200) for c in source(prepared, split).episode(n).classes}
        for split in ("train", "validation", "test")
    }
    assert len(met["validation"]) == len(met["test"]) == 6
    assert met["train"].isdisjoint(met["validation"] | met["test"])
    assert met["validation"].isdisjoint(met["test"])
    assert "shared" in prepared.summary
    assert prepared.summary["shared"] == {}


def test_only_words_of_the_asked_frequency_are_classes(prepared):
    pool = prepared.pool("train")
    sizes = pool.class_sizes()
    assert sizes[sizes > 0].min() >= 8
    assert sizes.max() <= 100
    table = prepared.take(np.arange(prepared.summary["rows"]))
    every = [name for names in table["classes"] for name in names]
    for c in np.flatnonzero(sizes):
        assert every.count(pool.classes[c]) == sizes[c]


def test_of_equal_texts_one_is_used(tmp_path, tiny_tokenizer_folder):
    path = tmp_path / "texts.jsonl"
    path.write_bytes(as_jsonl([{"text": text} for text in [*TEXTS, *TEXTS, "some old café"]]))
    corpus = {"kind": "files", "path": {"train": str(path)}}
    made, _ = ready(tmp_path / "p", tiny_tokenizer_folder, corpus, {"kind": "smlmt", "words": {"min_count": 2}})
    assert made.summary["repeated"] == 7  # TEXTS itself holds one text in two cases
    pool = made.pool("train")
    assert {pool.classes[c]: int(n) for c, n in enumerate(pool.class_sizes()) if n} == {
        "some": 2, "jazz": 2, "loud": 2, "cafe": 2, "old": 2,
    }  # fmt: skip


def test_words_are_shared_out_by_files_as_well(tmp_path, tiny_tokenizer_folder):
    files = {}
    for split, texts in (("train", TEXTS[:2]), ("test", ["some loud jazz", "loud music, some jazz"])):
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_bytes(as_jsonl([{"text": text} for text in texts]))
    tasks = {"kind": "smlmt", "words": {"min_count": 2}, "split": {"validation": ["jazz"]}}
    made, _ = ready(tmp_path / "p", tiny_tokenizer_folder, {"kind": "files", "path": files}, tasks)
    found = {}
    for split in ("train", "validation", "test"):
        pool = made.pool(split)
        found[split] = {pool.classes[c] for c in pool.cell_class}
    assert found == {"train": {"loud", "some"}, "validation": {"jazz"}, "test": {"jazz", "loud", "some"}}


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Rows that each hold some of the classes."""
    classes = draw(st.integers(4, 8))
    rows = draw(st.lists(st.sets(st.integers(0, classes - 1), max_size=3), min_size=40, max_size=120))
    pairs = sorted((c, r) for r, held in enumerate(rows) for c in held)
    cells = sorted({c for c, _ in pairs})
    starts = [next(i for i, (c, _) in enumerate(pairs) if c == cell) for cell in cells]
    held = [sorted(h) for h in rows]
    return Pool(
        "train", [f"w{c}" for c in range(classes)], [""], np.array(cells, dtype=np.int32), np.zeros(len(cells), np.int32),
        np.array([*starts, len(pairs)]), np.array([r for _, r in pairs], dtype=np.int64),
        np.concatenate([[0], np.cumsum([len(h) for h in held])]), np.array([c for h in held for c in h], dtype=np.int32),
        np.ones(len(pairs), dtype=np.int32),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    pool=pools(), ways=st.integers(2, 4), shots=st.integers(1, 3), queries=st.integers(1, 2),
    seed=st.integers(0, 2**63 - 1), number=st.integers(0, 2**62),
)  # fmt: skip
def test_an_episode_holds_k_and_q_texts_of_each_word_each_with_one_of_the_words(
    pool, ways, shots, queries, seed, number
):
    tasks = Smlmt(ways=ways, shots=shots, queries=queries)
    try:
        drawn = tasks.draw(pool, seed, number, tasks.choices(pool))
    except UserError as error:
        assert str(error).startswith("tasks.")  # noqa: PT017 - too few texts apart from each other
        return
    assert len(set(drawn.classes)) == ways
    assert len({*drawn.support.tolist(), *drawn.query.tolist()}) == ways * (shots + queries)
    for rows_of, each in ((drawn.support, shots), (drawn.query, queries)):
        for i, row in enumerate(rows_of.tolist()):
            held = {pool.classes[c] for c in pool.held(row)}
            assert held & set(drawn.classes) == {drawn.classes[i // each]}
    again = tasks.draw(pool, seed, number, tasks.choices(pool))
    assert (again.classes, again.support.tolist()) == (drawn.classes, drawn.support.tolist())


@pytest.mark.parametrize("feature", ["pooled", "mask"])
def test_the_feature_is_the_texts_state_or_that_of_its_masks(feature, prepared, tokenizer):
    episode = source(prepared, feature=feature).episode(3)
    examples, tasks = episode.support, Smlmt(feature=feature)
    states = torch.randn(len(examples.ids), 5, dtype=torch.float64)
    picks = tasks.picks(examples, "mean")
    assert picks.item is not None
    assert picks.weight is not None
    found = torch.zeros(8, 5, dtype=torch.float64).index_add(
        0, picks.item, states[picks.token] * picks.weight.unsqueeze(1)
    )
    for i, (ids, of_text) in enumerate(
        zip(*(t.split(examples.lengths.tolist()) for t in (examples.ids, states)), strict=True)
    ):
        wanted = of_text if feature == "pooled" else of_text[ids == tokenizer.mask_token_id]
        torch.testing.assert_close(found[i], wanted.mean(0))


def test_text_alone_trains_a_model_and_mistakes_are_told(tmp_path, tiny_tokenizer_folder):
    companions = {"book": "table", "play": "music", "stop": "bank", "find": "room"}
    fillers = ["today", "this time", "that day", "for you", "with me", "who did", "from where", "how will it start"]
    texts = [f"{word} the {other} {filler}" for word, other in companions.items() for filler in fillers]
    (tmp_path / "texts.jsonl").write_bytes(as_jsonl([{"text": text} for text in texts]))
    settings_of = {
        "name": "smlmt", "model": {"name": tiny_tokenizer_folder, "head": {"kind": "prototype", "scale": 0.2}},
        "corpus": {"kind": "files", "path": {"train": str(tmp_path / "texts.jsonl")}},
        "tasks": {"kind": "smlmt", "ways": 4, "shots": 2, "queries": 2, "feature": "mask", "words": {"min_count": 8, "max_count": 8, "min_length": 4}},
        "algorithm": "protonet", "outer": {"steps": 40, "tasks_per_step": 2, "lr": 5e-3, "schedule": "constant"},
        "validation": {"every": 0}, "storage": str(tmp_path), "cluster": "local-debug",
    }  # fmt: skip
    run = Run.of(settings_of)
    metatrain(run)
    losses = [row["query_loss"] for row in rows(run.folder / "metrics.jsonl")]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:10]), losses
    rare = Run.of({**settings_of, "tasks": {**settings_of["tasks"], "words": {"min_count": 400}}})
    with pytest.raises(
        UserError, match=r"tasks.words: no word occurs in 400 to 2000 of the \d+ texts .* lower min_count"
    ):
        metatrain(rare)
    with pytest.raises(UserError, match=r"tasks.words.min_count: 30 is more than max_count"):
        Run.of({**settings_of, "tasks": {**TASKS, "words": {"min_count": 30, "max_count": 20}}})


def test_a_tokenizer_without_a_mask_token_is_told_before_a_row_is_read(tmp_path, tiny_tokenizer_folder):
    AutoTokenizer.from_pretrained(tiny_tokenizer_folder).save_pretrained(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / name
        if path.is_file():
            values = json.loads(path.read_text())
            values.pop("mask_token", None)
            values["tokenizer_class"] = "PreTrainedTokenizerFast"
            path.write_text(json.dumps(values))
    (tmp_path / "config.json").write_text((Path(tiny_tokenizer_folder) / "config.json").read_text())
    from raymeta.corpora import Corpus

    tasks = Smlmt.model_validate(TASKS)
    with pytest.raises(UserError, match=r"tasks.kind: smlmt masks words, .* has no mask token; use an encoder"):
        prepare(Corpus.model_validate(CORPUS), tasks, Backbone(name=str(tmp_path)), 0, tmp_path / "p", on_ray=False)
    assert not (tmp_path / "p").exists()
