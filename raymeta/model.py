"""A transformers model made safe to differentiate twice: its settings, and how it is loaded as a `Network`."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, SerializeAsAny, model_validator

from raymeta.adapt import Adapt
from raymeta.component import Section
from raymeta.errors import UserError, did_you_mean, expanded, first_line
from raymeta.heads import Head
from raymeta.lora import Lora, injected
from raymeta.network import Network

DROPOUTS = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "dropout_rate",
    "resid_pdrop", "embd_pdrop", "attn_pdrop",
)  # fmt: skip


class Backbone(Section):
    """The pretrained model, what of it adapts to a task, and the head."""

    name: str = ""
    """A hub id, a local folder, or `package:NAME/PATH`: a folder inside an installed Python package. Empty only where
    `pretrain.architecture` says what is trained from nothing."""
    adapt: Adapt = "all"
    """What the inner loop changes: `all`; `head` (ANIL, Raghu et al. 2020); `body`, all but the head (BOIL, Oh et al. 2021);
    `{last: n}` or `{layers: [...]}`, those layers and the head; `{lora: {rank, alpha, targets}}`, low-rank adapters and the
    head; `{prompt: {tokens}}`, a soft prompt and the head. Where answers are texts, the head is the model's own output layer,
    which adapts with `all` and `head` only."""
    head: SerializeAsAny[Head] = Field(default_factory=lambda: Head.model_validate("prototype"))
    """Where a task's output layer starts: `prototype` (ProtoMAML), `zero`, `learned`; where answers are texts, the model's
    own output layer is the head (`lm`)."""
    pooling: Literal["auto", "mean", "first", "last"] = "auto"
    """How token states become a text's: their mean, the first token's, or the last one's; `auto`: as the checkpoint was
    trained (sentence-transformers' `1_Pooling/config.json`), else the mean."""
    max_length: int = Field(128, ge=8)
    """Tokens a text, special tokens included; longer ones are cut, and their number is printed."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the encoder while training, in inner and outer loop; seeded by episode and step."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` computes matrix products in bfloat16 (autocast): about 1.7 times as fast where the hardware has it, with
    gradients off by about 1 %."""
    trust_remote_code: bool = False
    """Whether code that comes with a checkpoint may run."""

    @model_validator(mode="after")
    def _can_move(self) -> Self:
        if self.adapt == "body" and self.head.kind == "zero":
            raise ValueError(
                "adapt: body with head: zero can never move: a head of zeros sends no gradient to the body; use another head"
            )
        return self

    def path(self) -> str:
        """The folder or hub id that `name` stands for; raises UserError where a package or folder is missing."""
        name = expanded(self.name, "model.name")
        if name.startswith("package:"):
            name = _inside_package(name.removeprefix("package:"))
        elif (name.startswith(("/", ".")) or name.count("/") > 1) and not Path(name).is_dir():
            raise UserError(f"model.name: there is no folder {name!r}; give a folder with a config.json, or a hub id")
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            raise UserError(f"model.name: the folder {name!r} has no config.json; give one that save_pretrained wrote")
        return name

    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer; raises UserError where it cannot be loaded."""
        from transformers import AutoTokenizer

        path = self.path()
        found = loaded(
            f"the tokenizer of {self.name!r}",
            lambda: AutoTokenizer.from_pretrained(path, use_fast=True, clean_up_tokenization_spaces=False),
        )
        if len(found) <= len(found.all_special_ids):  # what transformers makes up where a tokenizer's files are missing
            raise UserError(
                f"model.name: {self.name!r} has no tokenizer; put its files (tokenizer.json) beside config.json"
            )
        return found

    def load(
        self,
        outputs: int,
        seed: int = 0,
        trained: Literal["all", "adapted"] = "all",
        slots: int = 1,
        generates: bool = False,
    ) -> Network:
        """The model, ready to adapt; `outputs` is the size of the largest head, `trained` what the outer loop moves, `slots`
        the states that make a feature of the head's.

        generates: whether it must write texts; then it comes with its own output layer for a head.
        """
        from transformers import AutoConfig

        path = self.path()
        extra = {"trust_remote_code": self.trust_remote_code}
        config = loaded(self.name, lambda: AutoConfig.from_pretrained(path, **extra))
        for key in DROPOUTS:
            if hasattr(config, key):
                setattr(config, key, self.dropout)
        keywords = {**extra, "config": config, "attn_implementation": "eager", "dtype": torch.float32}
        module = self._writer(path, keywords) if generates else self._encoder(path, keywords)
        if isinstance(self.adapt, Lora):
            module = injected(module, self.adapt.lora, seed)
        settings = self.suited(generates)
        return Network(settings, module, outputs, seed, self._pooling(path), trained, slots, generates)

    def suited(self, generates: bool) -> "Backbone":
        """These settings with the head that the tasks need, where none is chosen; raises UserError where a wrong one is."""
        if generates == (self.head.kind == "lm"):
            return self
        if generates and self.head == Head.model_validate("prototype"):
            return self.model_copy(update={"head": Head.model_validate("lm")})
        if generates:
            raise UserError(
                f"model.head: {self.head.kind} cannot be the head of tasks whose answers are texts, which the model's own "
                "output layer writes; leave it out"
            )
        others = ", ".join(k for k in Head.kinds() if k != "lm")
        raise UserError(f"model.head: lm writes texts, and the answers of these tasks are none; choose one of {others}")

    def _encoder(self, path: str, keywords: dict[str, Any]) -> Any:
        """A model that reads: an encoder, or a decoder's body."""
        from transformers import AutoModel

        try:
            module = loaded(self.name, lambda: AutoModel.from_pretrained(path, add_pooling_layer=False, **keywords))
        except TypeError:  # not every architecture has a pooler to leave out
            module = loaded(self.name, lambda: AutoModel.from_pretrained(path, **keywords))
        return module.get_encoder() if "decoder_input_ids" in inspect.signature(module.forward).parameters else module

    def _writer(self, path: str, keywords: dict[str, Any]) -> Any:
        """A model with its output layer; raises UserError where the checkpoint has none, or reads both ways."""
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
        from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

        config = keywords["config"]
        causal = getattr(config, "is_decoder", False) or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        if not (config.is_encoder_decoder or causal):
            raise UserError(
                f"model.name: {self.name!r} cannot write texts, for in a {config.model_type} type each token sees those after it; "
                "name a model of GPT-2, Llama or T5 type"
            )
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        module, found = loaded(self.name, lambda: kind.from_pretrained(path, output_loading_info=True, **keywords))
        if found["missing_keys"]:
            raise UserError(
                f"model.name: {self.name!r} lacks weights that {type(module).__name__} needs to write texts "
                f"({', '.join(sorted(found['missing_keys'])[:3])}); name a checkpoint of the whole model"
            )
        return module

    def _pooling(self, path: str) -> str:
        if self.pooling != "auto":
            return self.pooling
        settings = Path(path) / "1_Pooling" / "config.json"
        if settings.is_file() and '"pooling_mode_cls_token": true' in settings.read_text(encoding="utf-8"):
            return "first"
        return "mean"


def _inside_package(place: str) -> str:
    package, _, inner = place.partition("/")
    package = package.replace("-", "_")
    if not package.isidentifier():
        raise UserError(f"model.name: 'package:{place}' names no package; write package:NAME/PATH")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.name: package {package!r} is not installed here; install it (pip install {package.replace('_', '-')}), "
            "or name a local folder or a hub id"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inner
    if not folder.is_dir():
        there = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
        raise UserError(f"model.name: package {package!r} has no folder {inner!r}{did_you_mean(inner, there)}")
    return str(folder)


def loaded(what: str, load: Any) -> Any:
    """What `load` gives; raises UserError, which names `what`, where it fails."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        return load()
    except UserError:
        raise
    except Exception as error:  # damaged files make each library raise kinds of its own
        if isinstance(error, TypeError) and "add_pooling_layer" in str(error):
            raise
        raise UserError(
            f"model.name: {what} could not be loaded: {first_line(error)}. Give a folder with config.json, weights and tokenizer, "
            "a `package:NAME/PATH`, or a hub id (with a network, or with the files in the hub's cache)"
        ) from error


__all__ = ["DROPOUTS", "Adapt", "Backbone", "Network", "loaded"]
