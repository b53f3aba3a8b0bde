"""Words and their pieces, for the task kinds that need to know where a word stands, whatever the tokenizer."""

from collections.abc import Sequence
from typing import Any


def pieces(tokenizer: Any, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Token ids of each word of each text, without special tokens; a word that yields none gets one unknown token.

    Byte-level tokenizers (GPT-2, RoBERTa) write the space before a word into its first piece: there, words after the first
    are given theirs.
    """
    unknown = filler(tokenizer)
    space = " " if _spaces_are_pieces(tokenizer) else ""
    words = [[space * (i > 0) + word if word.strip() else "" for i, word in enumerate(text)] for text in texts]
    kept = [i for i, text in enumerate(words) if any(text)]
    found = tokenizer([words[i] for i in kept], is_split_into_words=True, add_special_tokens=False) if kept else None
    out: list[list[list[int]]] = [[[] for _ in text] for text in texts]
    for row, i in enumerate(kept):
        assert found is not None
        for token, owner in zip(found["input_ids"][row], found.word_ids(row), strict=True):
            if owner is not None:
                out[i][owner].append(token)
    return [[word or [unknown] for word in text] for text in out]


def filler(tokenizer: Any) -> int:
    """The id that stands for a word without pieces: the unknown token's, or where there is none, the end of a text's."""
    for name in ("unk_token_id", "eos_token_id", "pad_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    return 0


def specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    found = tokenizer(["a"], is_split_into_words=True)
    ids, owners = found["input_ids"], found.word_ids(0)
    inside = [i for i, owner in enumerate(owners) if owner is not None]
    return list(ids[: inside[0]]), list(ids[inside[-1] + 1 :])


def _spaces_are_pieces(tokenizer: Any) -> bool:
    def ids(words: list[str]) -> list[int]:
        found: list[int] = tokenizer(words, is_split_into_words=True, add_special_tokens=False)["input_ids"]
        return found

    whole = tokenizer("a a", add_special_tokens=False)["input_ids"]
    return bool(ids(["a", "a"]) != whole and ids(["a", " a"]) == whole)
