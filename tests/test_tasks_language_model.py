"""Language modelling: an episode's texts are foretold token by token, and nothing is generated."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from raymeta.config import Run
from raymeta.parts import prepared
from raymeta.pipeline import run_all
from raymeta.stages.evaluate import loaded, meta_parameters, read, scores, text
from raymeta.stream import Source
from raymeta.tasks.language_model import LanguageModel
from raymeta.workers import Workers
from tests.families import save_family
from tests.small import as_jsonl
from tests.tokenizers_of import TEXTS, TOKENIZERS

ROWS = [
    {"text": f"{word} {place} {n}", "author": place}
    for place in ("here", "there", "nowhere", "today")
    for word in ("music", "a table", "my room")
    for n in range(3)
]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def run_of(folder, family: str, wordpiece: str, **sections) -> Run:
    (folder / "rows.jsonl").write_bytes(as_jsonl(ROWS))
    return Run.of(
        {
            "name": "authors", "model": {"name": save_family(family, folder, wordpiece, writes=True), "max_length": 24},
            "corpus": {"kind": "files", "path": str(folder / "rows.jsonl"), "columns": {"task": "author"}},
            "tasks": {"kind": "language_model", "shots": 3, "queries": 2, "split": {"of": "task", "validation": 1, "test": 1}},
            "algorithm": {"kind": "maml", "inner_lr": 0.1, "inner_steps": 3, "order": 1},
            "storage": str(folder), "cluster": "local-debug", **sections,
        }
    )  # fmt: skip


@pytest.mark.parametrize("said", TEXTS)
def test_a_text_is_foretold_whole_and_then_its_end(tokenizer, said):
    kind = LanguageModel()
    found = kind.encode([{"text": said, "task": "x"}], tokenizer, 256)[0]
    plain = tokenizer(said, add_special_tokens=False)["input_ids"]
    assert found["target_ids"] == [*plain, kind.end(tokenizer)]
    assert len(found["ids"]) == 1
    assert not found["cut"]
    assert found["classes"] == ["x"]


def test_a_text_that_is_too_long_is_cut_and_does_not_end(tokenizer):
    kind = LanguageModel()
    said = " ".join(TEXTS)
    whole = kind.encode([{"text": said}], tokenizer, 4096)[0]
    size = len(whole["target_ids"])
    for room, cut in ((size, False), (size - 1, True), (9, True)):
        found = kind.encode([{"text": said}], tokenizer, room)[0]
        assert found["cut"] == cut
        assert found["target_ids"] == whole["target_ids"][:room]


def test_a_row_that_cannot_be_used_says_why():
    assert LanguageModel().fault({"text": None}) == "text is missing, not a string"
    assert LanguageModel().fault({"text": 3}) == "text is int '3', not a string"
    assert LanguageModel().fault({"text": " \n"}) == "text is empty"
    assert LanguageModel().fault({"text": "a"}) is None


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_loss_and_perplexity_are_those_of_the_library_s_model(family, tmp_path, tiny_tokenizer_folder):
    run = run_of(tmp_path, family, tiny_tokenizer_folder)
    network = loaded(run, Workers())
    folder = prepared(run.parts, run.backbone, run.seed, tmp_path, on_ray=False, say=lambda _: None)[0]
    source = Source(folder, run.tasks, "test", run.seed)
    params = meta_parameters(run, network, Workers())
    found = scores(network, run.algorithm, params, source, 2, 0, Workers(), written_out=True)
    tokenizer = run.backbone.tokenizer()
    for number, got in enumerate(found):
        assert set(got) == {"token_accuracy", "query_loss", "perplexity"}
        query = source.episode(number).query
        losses = []
        for ids in torch.split(query.extra["target_ids"], query.extra["target_lengths"].tolist()):
            assert tokenizer.decode(ids, skip_special_tokens=True).split()[-2] in {row["author"] for row in ROWS}
            begin = tokenizer.bos_token_id
            with torch.no_grad():
                logits = network.plain(input_ids=torch.tensor([[begin, *ids[:-1].tolist()]])).logits[0]
            losses += F.cross_entropy(logits.double(), ids, reduction="none").tolist()
        # float32 sums in another order
        assert got["query_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
        assert got["perplexity"] == pytest.approx(math.exp(got["query_loss"]))


def test_a_run_ends_in_perplexities_before_and_after_adapting(tmp_path, tiny_tokenizer_folder):
    run = run_of(
        tmp_path, "gpt2", tiny_tokenizer_folder,
        outer={"steps": 12, "tasks_per_step": 2, "lr": 3e-3}, validation={"every": 6, "episodes": 4}, evaluate={"episodes": 6},
    )  # fmt: skip
    found = run_all(run)
    assert found == read(run.folder / "evaluation.json")
    rows = [found[name]["perplexity"]["mean"] for name in ("metrics", "unadapted", "untrained")]
    assert all(low < high for low, high in pairwise(rows))  # adapted, then not adapted, then not meta-trained
    said = text(run, found)
    assert "perplexity" in said
    assert f"{rows[0]:.2f} ± " in said
