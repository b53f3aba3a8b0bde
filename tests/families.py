"""Tiny models of each family with a tokenizer of the family's kind, trained on the small texts of the tests."""

from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing

from tests.small import INTENTS, SENTENCES
from tests.tiny import FAMILIES, save_model
from tests.writers import WRITERS, save_writer

__all__ = ["FAMILIES", "save_family"]
_SPECIAL = {
    "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "gpt2": ["<|endoftext|>"], "llama": ["<pad>", "<s>", "</s>", "<unk>"],
    "t5": ["<pad>", "</s>", "<unk>"],
}  # fmt: skip


def save_family(family: str, folder: Path, wordpiece: str, writes: bool = False) -> str:
    """A model of `family` and its tokenizer in `folder`; BERT types have the WordPiece tokenizer in the folder `wordpiece`.

    writes: with an output layer over the vocabulary, if the family has one.
    """
    tokenizer = _tokenizer(family, wordpiece)
    tokenizer.save_pretrained(folder)
    save = save_writer if writes and family in WRITERS else save_model
    return save(family, folder, vocabulary=len(tokenizer))


def _tokenizer(family: str, wordpiece: str) -> Any:
    from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast, RobertaTokenizerFast

    if family not in _SPECIAL:
        return AutoTokenizer.from_pretrained(wordpiece)
    pieces = ByteLevelBPETokenizer()
    texts = [row["text"] for row in INTENTS] + [" ".join(words) for words, _ in SENTENCES]
    pieces.train_from_iterator(texts, vocab_size=320, special_tokens=_SPECIAL[family])
    if family in ("roberta", "gpt2"):
        vocabulary = pieces.get_vocab()
        merges = [tuple(m) for m in __import__("json").loads(pieces.to_str())["model"]["merges"]]
        return {"roberta": RobertaTokenizerFast, "gpt2": GPT2TokenizerFast}[family](vocab=vocabulary, merges=merges)
    end = pieces.token_to_id("</s>")
    around = "<s> $A" if family == "llama" else "$A </s>"
    pieces._tokenizer.post_processor = TemplateProcessing(
        single=around, special_tokens=[("<s>", pieces.token_to_id("<s>") or 0), ("</s>", end)]
    )
    begin = {"bos_token": "<s>"} if family == "llama" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **begin
    )
