"""Small corpora for tests: the same rows in every format, and a prepared corpus of them."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymeta.corpora import Corpus, Row
from raymeta.model import Backbone
from raymeta.prepare import prepare
from raymeta.store import Prepared
from raymeta.stream import Source
from raymeta.tasks import Tasks

DATA = Path(__file__).parent / "data"
INTENTS = [json.loads(line) for line in (DATA / "intents.jsonl").read_text(encoding="utf-8").splitlines()]
SENTENCES = [
    ([line.split()[0] for line in block.splitlines()], [line.split()[1] for line in block.splitlines()])
    for block in (DATA / "entities.conll").read_text(encoding="utf-8").strip().split("\n\n")
]


def as_parquet(rows: list[dict[str, Any]], row_group_size: int = 7) -> bytes:
    """Rows as a Parquet file of several row groups."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=row_group_size)
    return sink.getvalue().to_pybytes()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    """Rows as CSV with a header."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


FORMATS = {
    "rows.parquet": as_parquet,
    "rows.jsonl": as_jsonl,
    "rows.json": as_jsonl,
    "rows.csv": as_csv,
    "rows.tsv": lambda rows: as_csv(rows, "\t"),
    "rows.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "rows.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "rows.tsv.gz": lambda rows: gzip.compress(as_csv(rows, "\t")),
}
"""File name -> what writes rows of texts in its format."""


def as_conll(sentences: list[tuple[list[str], list[str]]], between: str = " ") -> bytes:
    """Sentences as CoNLL columns."""
    return "\n".join("".join(f"{w}{between}{t}\n" for w, t in zip(*s, strict=True)) for s in sentences).encode()


def read(corpus: Corpus, roles: tuple[str, ...], split_column: str | None = None) -> list[Row]:
    """Every row of a corpus, in order."""
    shards, columns = corpus.check(roles, split_column)
    return [row for shard in shards for row in corpus.read(shard, columns)]


def ready(
    folder: Path, model: str, corpus: dict[str, Any], tasks: dict[str, Any], seed: int = 0, max_length: int = 128
) -> tuple[Prepared, Tasks]:
    """A corpus prepared in this process, and its task kind."""
    kind = Tasks.model_validate(tasks)
    backbone = Backbone(name=model, max_length=max_length)
    made = prepare(Corpus.model_validate(corpus), kind, backbone, seed, folder, on_ray=False, say=lambda _: None)
    return made, kind


def source(
    folder: Path, model: str, corpus: dict[str, Any], tasks: dict[str, Any], split: str = "train", seed: int = 0
) -> Source:
    """Where episodes of a split of a corpus come from."""
    made, kind = ready(folder, model, corpus, tasks, seed)
    return Source(str(made.folder), kind, split, seed)
