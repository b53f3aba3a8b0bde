"""Rows from a dataset of the Hugging Face hub, or from a local folder that `datasets` loads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from raymeta.corpora import Corpus, Row, Shard
from raymeta.episodes import SPLITS
from raymeta.errors import UserError, did_you_mean, expanded, first_line


class Hub(Corpus):
    """A dataset by its hub name, streamed. Class numbers are read as the class names that the dataset gives them."""

    name: str
    """The dataset's name on the hub (`owner/name`), or a local folder."""
    config: str | None = None
    """The dataset's configuration, where it has several."""
    revision: str | None = None
    """A commit or tag: pins the data."""
    splits: dict[str, str] = Field(default_factory=lambda: {s: s for s in SPLITS})
    """Our split -> the dataset's; those that it lacks are skipped. `{train: train}` alone suits `tasks.split`."""

    def _place(self) -> str:
        return expanded(self.name, "corpus.name")

    def _dataset(self, split: str) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self._place(), self.config, split=split, revision=self.revision, streaming=True)
        except UserError:
            raise
        except Exception as error:  # the library raises kinds of its own for each way to fail
            raise UserError(
                f"corpus.name: dataset {self.name!r} could not be loaded: {first_line(error)}. Without a network, download it elsewhere "
                "and give a local folder here, or its files to a corpus of kind files"
            ) from error

    def _there(self) -> list[str]:
        from datasets import get_dataset_split_names

        try:
            return list(get_dataset_split_names(self._place(), self.config, revision=self.revision))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"corpus.name: dataset {self.name!r} could not be found: {first_line(error)}. Without a network, download it elsewhere "
                "(`hf download --repo-type dataset`) and give the local folder here, or its files to a corpus of kind files"
            ) from error

    def shards(self) -> list[Shard]:
        there = self._there()
        for ours, theirs in self.splits.items():
            if ours not in SPLITS:
                raise UserError(
                    f"corpus.splits: {ours!r} is not a split{did_you_mean(ours, SPLITS)} (splits: {', '.join(SPLITS)})"
                )
            if theirs not in there and "splits" in self.model_fields_set:
                raise UserError(
                    f"corpus.splits: {self.name} has no split {theirs!r}{did_you_mean(theirs, there)} (splits: {', '.join(there)})"
                )
        found = [(ours, theirs) for ours, theirs in self.splits.items() if theirs in there]
        return [Shard(f"{self.name}[{theirs}]", theirs, ours, 0, i) for i, (ours, theirs) in enumerate(found)]

    def names(self, shard: Shard) -> list[str]:
        dataset = self._dataset(shard.place)
        return list(dataset.column_names or next(iter(dataset), {}))

    def fingerprint(self) -> str:
        folder = Path(self._place())
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        seen = [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
        return "\n".join([f"{self.name}:{self.config}:{self.revision}:{self.splits}", *seen])

    def rows(self, shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
        dataset = self._dataset(shard.place)
        namers = {role: _namer((dataset.features or {}).get(str(column))) for role, column in columns.items()}
        try:
            for number, row in enumerate(dataset):
                yield Row(number, {role: namers[role](row.get(str(column))) for role, column in columns.items()})
        except Exception as error:
            raise UserError(f"corpus.name: {shard.name} could not be read to its end: {first_line(error)}") from error


def _namer(feature: Any) -> Any:
    """What turns a value of a dataset's column into ours: class numbers become names, also inside lists."""
    inner = getattr(feature, "feature", None)
    if inner is not None:
        one = _namer(inner)
        return lambda values: None if values is None else [one(v) for v in values]
    if hasattr(feature, "int2str"):
        return lambda value: None if value is None or value < 0 else feature.int2str(value)
    return lambda value: value
