"""A new tokenizer, trained on text by the `tokenizers` library, with the special tokens of the model's family."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from raymeta.errors import UserError, first_line
from raymeta.pretraining import SENTINELS, Family, NewTokenizer

_BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
SPECIAL: dict[Family, dict[str, str]] = {
    "bert": _BERT,
    "distilbert": _BERT,
    "roberta": {
        "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>",
        "cls_token": "<s>", "sep_token": "</s>",
    },
    "gpt2": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    "llama": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "t5": {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
}  # fmt: skip
"""The special tokens of each family, by what they are for, in the order of their ids. GPT-2 and Llama have none for padding."""
_AROUND: dict[Family, tuple[str, str]] = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "distilbert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "llama": ("<s> $A", "<s> $A <s> $B"),
    "t5": ("$A </s>", "$A </s> $B </s>"),
}
"""What stands around one text, and around two."""


def trained(settings: NewTokenizer, family: Family, texts: Callable[[], Iterator[str]], longest: int) -> Any:
    """A tokenizer of `settings.size` pieces learned from `texts`, for texts of up to `longest` tokens.

    The same texts give the same tokenizer, though the library goes through them in another order each time; but of
    pieces that are equally good, `unigram` may keep others.
    Raises UserError where the text does not support so many pieces, or needs more.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys(SPECIAL[family].values()))
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(SENTINELS))] if family == "t5" else []
    size = settings.size - len(sentinels)
    if size <= len(special):
        raise UserError(
            f"pretrain.tokenizer.size: {settings.size} pieces leave none beside the {len(special) + len(sentinels)} special tokens of a "
            f"{family} type; raise it"
        )
    unknown = special[_unknown(special)]
    first = special
    try:
        if settings.kind == "wordpiece":  # its letters first, in a fixed order: ties between pairs go by their ids
            tokenizer, trainer = _untrained(settings, special, unknown, len(special))
            tokenizer.train_from_iterator(texts(), trainer)
            first = [*special, *sorted(piece for piece in tokenizer.get_vocab() if piece not in special)]
        tokenizer, trainer = _untrained(settings, first, unknown, size)
        tokenizer.train_from_iterator(texts(), trainer)
    except Exception as error:  # the library raises plain Exceptions
        raise UserError(
            f"pretrain.tokenizer: {settings.kind} could not be trained on this text: {first_line(error)}; lower pretrain.tokenizer.size, "
            "or name more text"
        ) from error
    found = tokenizer.get_vocab_size()
    if found < size:
        raise UserError(
            f"pretrain.tokenizer.size: {settings.size} pieces were asked for, but this text supports {found + len(sentinels)}; lower it, "
            "or name more text"
        )
    if found > size:
        raise UserError(
            f"pretrain.tokenizer.size: {settings.size} pieces are too few, {settings.kind} needs {found + len(sentinels)} for the "
            "characters of this text; raise it"
        )
    tokenizer = Tokenizer.from_str(json.dumps(_ordered(json.loads(tokenizer.to_str()), special)))
    if sentinels:
        tokenizer.add_special_tokens(sentinels)
    _frame(tokenizer, family)
    words: dict[str, Any] = dict(SPECIAL[family])
    if "mask_token" in words and settings.kind == "byte_bpe":
        words["mask_token"] = AddedToken(
            words["mask_token"], lstrip=True, special=True
        )  # takes the space before it along
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=longest, clean_up_tokenization_spaces=False,
        **words, **({"extra_special_tokens": sentinels} if sentinels else {}),
    )  # fmt: skip


def _untrained(settings: NewTokenizer, special: list[str], unknown: str, size: int) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    common: dict[str, Any] = {"vocab_size": size, "special_tokens": special, "show_progress": False}
    if settings.kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer(**common)
    lower = [normalizers.Lowercase()] if settings.lowercase else []
    if settings.kind == "byte_bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(lower)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, trainers.BpeTrainer(**common, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *lower])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer, trainers.UnigramTrainer(**common, unk_token=unknown)


def _ordered(state: dict[str, Any], special: list[str]) -> dict[str, Any]:
    """The tokenizer's state with its special tokens first and its other pieces in an order that every run gives."""
    model = state["model"]
    if model["type"] == "WordPiece":
        pieces = [*special, *sorted(piece for piece in model["vocab"] if piece not in special)]
        model["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    elif model["type"] == "Unigram":
        # sums over threads differ in their last digits
        scores = {piece: round(score, 4) for piece, score in model["vocab"] if piece not in special}
        ranked = sorted(scores, key=lambda piece: (-scores[piece], piece))
        model["vocab"] = [*([piece, 0.0] for piece in special), *([piece, scores[piece]] for piece in ranked)]
        model["unk_id"] = _unknown(special)
    state["added_tokens"] = [
        t | {"id": i} for t in state["added_tokens"] for i, s in enumerate(special) if s == t["content"]
    ]
    return state


def _unknown(special: list[str]) -> int:
    """The place of the token for what is not in the vocabulary."""
    return next((i for i, piece in enumerate(special) if "unk" in piece.lower()), 0)


def _frame(tokenizer: Any, family: Family) -> None:
    from tokenizers import processors

    if family in _AROUND:
        single, pair = _AROUND[family]
        words = {word.partition(":")[0] for word in pair.split() if not word.startswith("$")}
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(word, tokenizer.token_to_id(word)) for word in sorted(words)]
        )
