"""Small tokenizers of each type, trained on a few sentences: byte-level BPE without a pad token, unigram, WordPiece."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "About how long have these symptoms been going on?", "and all chest pain should be treated this way",
    "Et vous, depuis combien de temps avez-vous de la fièvre ?", "Wie lange haben Sie diese Symptome schon?",
    "这些症状持续多久了?", "منذ متى لا تزال هذه الأعراض مستمرة تقريبًا؟", "User: I'd like to make a bank transfer, can you help?",
    "System: Sure, who will you be sending it to?", "translate to French: summarize: => {task}",
)  # fmt: skip
"""Sentences in several scripts."""


def byte_bpe() -> Any:
    """GPT-2's type: bytes, no special token around a text, an end token and no pad token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )


def unigram() -> Any:
    """T5's type (sentencepiece's unigram model): spaces are a sign of their own, and `</s>` ends a text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )  # fmt: skip


def word_piece() -> Any:
    """BERT's type, lower-cased: `[CLS]` and `[SEP]` around a text, and no end token but `[SEP]`."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


TOKENIZERS = {"byte BPE": byte_bpe, "unigram": unigram, "WordPiece": word_piece}
