"""Every kind of task learns with every family of models that the README's table gives it."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from raymeta.algorithms.maml import Maml
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.outer import OuterLoop
from raymeta.parts import prepared
from raymeta.stages.evaluate import loaded, meta_parameters
from raymeta.stream import Source
from raymeta.tasks import Tasks
from raymeta.workers import Workers
from tests.families import FAMILIES, save_family
from tests.small import INTENTS, SENTENCES, as_jsonl

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PLACES = ("the city bank", "a table", "the music room", "my book")


def rows_of(kind: str) -> list[dict[str, Any]]:
    """A small corpus of a kind."""
    if kind == "classification":
        return INTENTS
    if kind == "entities":
        return [{"tokens": words, "tags": tags} for words, tags in SENTENCES]
    if kind == "smlmt":
        return [
            {"text": f"{row['text']} {word} today"} for row in INTENTS for word in ("music", "table", "room", "bank")
        ]
    if kind == "relations":
        rows = []
        for i in range(40):
            tokens = [
                *PLACES[i % 4].split(),
                ("is", "was", "has", "can")[i % 4],
                "in",
                *PLACES[(i + 1) % 4].split(),
                "today",
            ]
            ends = len(PLACES[i % 4].split()), len(tokens) - 1 - len(PLACES[(i + 1) % 4].split())
            rows.append({
                "tokens": tokens, "head_start": 0, "head_end": ends[0], "tail_start": ends[1], "tail_end": len(tokens) - 1,
                "label": f"relation {i % 4}",
            })  # fmt: skip
        return rows
    if kind in WRITING:
        return [
            {"source": f"show {word} {n}", "target": f"{word} is {task}", "task": task, "intent": f"find {word}", "definition": "say it",
             "text": f"{word} is {task} {n}"}
            for task in ("here", "there", "today") for word in ("music", "table", "room", "bank") for n in range(4)
        ]  # fmt: skip
    assert kind == "qa"
    return [
        {"question": "where is it?", "context": f"it is in {place} today and not there", "answer": place, "task": f"{i % 2}"}
        for i in range(10) for place in PLACES
    ]  # fmt: skip


SETTINGS: dict[str, dict[str, Any]] = {
    "classification": {"ways": 3, "shots": 2, "queries": 2},
    "entities": {"ways": 2, "shots": 1, "queries": 1},
    "relations": {"ways": 3, "shots": 2, "queries": 2},
    "qa": {"shots": 3, "queries": 3},
    "smlmt": {"ways": 3, "shots": 2, "queries": 2, "words": {"min_count": 6, "max_count": 100}},
}
"""An episode of each kind."""


TEXT_TO_TEXT = ("translation", "summarization", "dialogue", "instructions")
WRITING = (*TEXT_TO_TEXT, "language_model")
"""Kinds whose answers are tokens that a language model tells."""
SETTINGS |= {kind: {"shots": 3, "queries": 3, "max_target_length": 12} for kind in TEXT_TO_TEXT}
SETTINGS["language_model"] = {"shots": 3, "queries": 3}


def run_of(kind: str, family: str, folder: Path, wordpiece: str, **model: Any) -> Run:
    """A run of a kind with a tiny model of a family."""
    (folder / "rows.jsonl").write_bytes(as_jsonl(rows_of(kind)))
    corpus: dict[str, Any] = {"kind": "files", "path": str(folder / "rows.jsonl")}
    if kind in ("qa", *WRITING):
        corpus["columns"] = {"task": "task"}
    name = save_family(family, folder, wordpiece, writes=kind in WRITING)
    return Run.of(
        {
            "name": "pair", "model": {"name": name, "max_length": 48, **model}, "corpus": corpus,
            "tasks": {"kind": kind, "split": {"validation": 1}, **SETTINGS[kind]}, "storage": str(folder),
            "algorithm": {"kind": "maml", "inner_steps": 2, "inner_lr": 0.01}, "cluster": "local-debug",
        }
    )  # fmt: skip


def table_of_the_readme() -> dict[tuple[str, str], bool]:
    """(kind, family) -> whether the README says that they go together."""
    header, _, *lines = re.search(r"\| kind of task \|.*?\n\n", README, re.DOTALL)[0].strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *lines)]
    families = [re.sub(r",.*|\W", "", name).lower() for name in cells[0][1:]]
    found = {}
    for kinds, *marks in cells[1:]:
        for kind in re.findall(r"`(\w+)`", kinds):
            found |= {(kind, family): mark.startswith("yes") for family, mark in zip(families, marks, strict=True)}
    return found


TABLE = table_of_the_readme()
PAIRS = [(kind, family) for kind in SETTINGS for family in FAMILIES]


def test_the_table_names_every_kind_and_every_family():
    assert {kind for kind, _ in TABLE} == set(Tasks.kinds())
    assert {family for _, family in TABLE} == set(FAMILIES)


@pytest.mark.parametrize(("kind", "family"), [p for p in PAIRS if TABLE[p]])
def test_a_supported_pair_takes_meta_steps_of_second_order_and_adapting_lowers_its_loss(
    kind, family, tmp_path, tiny_tokenizer_folder
):
    run = run_of(kind, family, tmp_path, tiny_tokenizer_folder)
    network = loaded(run, Workers())
    folder = prepared(run.parts, run.backbone, run.seed, tmp_path, on_ray=False, say=lambda _: None)[0]
    source = Source(folder, run.tasks, "train", run.seed)
    outer = OuterLoop(run.outer, meta_parameters(run, network, Workers()), network.embedding)
    before = outer.params[network.embedding].clone()
    assert isinstance(run.algorithm, Maml)
    assert run.algorithm.order == 2
    for step in (1, 2):
        found = run.algorithm.meta_step(
            run.algorithm.bound(network, run.tasks, [source.episode(step)]), outer.params, step
        )
        assert outer.add(found, 0.0)
        took = outer.update()
        assert math.isfinite(took.query_loss)
        assert took.grad_norm > 0
    assert not outer.params[network.embedding].equal(before)
    inner = run.algorithm.bound(network, run.tasks, [source.episode(3)], learn=False)
    with torch.no_grad():
        local = inner.opened(outer.params, learn=False)
        unadapted, adapted = (inner.support_losses(run.algorithm.adapt(inner, local, steps=n)).item() for n in (0, 2))
    assert adapted < unadapted


@pytest.mark.parametrize(("kind", "family"), [p for p in PAIRS if not TABLE[p]])
def test_another_pair_is_refused_with_a_reason_before_anything_is_learned(
    kind, family, tmp_path, tiny_tokenizer_folder
):
    run = run_of(kind, family, tmp_path, tiny_tokenizer_folder)
    says = {
        True: r"model\.name: .* cannot write texts",
        False: rf"{kind} masks words, and the tokenizer of model.name .* has no mask token",
    }[kind in WRITING]

    def begun() -> None:
        prepared(run.parts, run.backbone, run.seed, tmp_path, on_ray=False, say=lambda _: None)
        loaded(run, Workers())

    with pytest.raises(UserError, match=says):
        begun()
