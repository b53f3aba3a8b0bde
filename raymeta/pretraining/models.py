"""The model that is pre-trained: a checkpoint's or a new one, with the head of its objective."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raymeta.errors import UserError
from raymeta.model import DROPOUTS, Backbone, loaded
from raymeta.pretraining import Architecture, Objective, Pretrain

_CLASSES: dict[Objective, str] = {
    "mlm": "AutoModelForMaskedLM", "mlm+nsp": "AutoModelForPreTraining", "clm": "AutoModelForCausalLM",
    "span": "AutoModelForSeq2SeqLM",
}  # fmt: skip


def configuration(pretrain: Pretrain, model: Backbone, tokenizer: Any) -> Any:
    """The configuration of the model to be trained; raises UserError where it cannot be loaded."""
    from transformers import AutoConfig

    if pretrain.architecture:
        found = _new(pretrain.architecture, tokenizer)
    else:
        path = model.path()
        extra = {"trust_remote_code": model.trust_remote_code}
        found = loaded(model.name, lambda: AutoConfig.from_pretrained(path, **extra))
    for key in DROPOUTS:
        if hasattr(found, key):
            setattr(found, key, pretrain.dropout)
    return found


def _new(new: Architecture, tokenizer: Any) -> Any:
    import transformers

    ffn = new.ffn or 4 * new.hidden
    pad = tokenizer.pad_token_id
    common = {
        "vocab_size": len(tokenizer), "pad_token_id": pad, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    usual = {
        "hidden_size": new.hidden, "num_hidden_layers": new.layers, "num_attention_heads": new.heads, "intermediate_size": ffn,
        "max_position_embeddings": new.max_positions,
    }  # fmt: skip
    if new.type == "bert":
        return transformers.BertConfig(**common | usual)
    if new.type == "roberta":
        first = 1 if pad is None else pad + 1  # positions begin after the padding token's id
        own = {"max_position_embeddings": new.max_positions + first, "type_vocab_size": 1, "pad_token_id": first - 1}
        return transformers.RobertaConfig(**common | usual | own)
    if new.type == "distilbert":
        return transformers.DistilBertConfig(
            **common, dim=new.hidden, n_layers=new.layers, n_heads=new.heads, hidden_dim=ffn,
            max_position_embeddings=new.max_positions,
        )  # fmt: skip
    if new.type == "gpt2":
        return transformers.GPT2Config(
            **common,
            n_embd=new.hidden,
            n_layer=new.layers,
            n_head=new.heads,
            n_inner=ffn,
            n_positions=new.max_positions,
        )
    if new.type == "llama":
        return transformers.LlamaConfig(**common | usual)
    return transformers.T5Config(
        **common, d_model=new.hidden, d_kv=new.hidden // new.heads, d_ff=ffn, num_layers=new.layers, num_heads=new.heads,
        decoder_start_token_id=pad,
    )  # fmt: skip


def started(pretrain: Pretrain, model: Backbone, tokenizer: Any, seed: int) -> tuple[nn.Module, list[str]]:
    """The model before training, its new weights seeded, and what a user should know of it.

    Raises UserError where a checkpoint cannot be loaded, or lacks more than the objective's head.
    """
    import transformers

    config = configuration(pretrain, model, tokenizer)
    kind = getattr(transformers, _CLASSES[pretrain.objective])
    torch.manual_seed(seed)
    if pretrain.architecture:
        module: nn.Module = kind.from_config(config, trust_remote_code=model.trust_remote_code)
        return module, [f"a new {config.model_type} of {_millions(module)} M parameters"]
    path = model.path()
    module, info = loaded(
        model.name,
        lambda: kind.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=model.trust_remote_code,
        ),
    )
    inner = f"{module.base_model_prefix}."
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith(inner) or ".pooler." in name)
    broken = sorted(set(info["missing_keys"]) - set(lacking))
    if broken:
        raise UserError(
            f"model.name: {model.name!r} lacks weights of a {config.model_type} model ({', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''}); "
            "give a whole checkpoint, or a new model by pretrain.architecture"
        )
    said = [f"{model.name}: {_millions(module)} M parameters"]
    if lacking:
        tied = _tied(module)
        said.append(
            f"it has no head for {pretrain.objective}; a new one is trained"
            + (", tied to its embeddings" if tied else "")
            + f" ({', '.join(dict.fromkeys(n.rpartition('.')[0] for n in lacking))})"
        )
    return module, said


def _tied(module: nn.Module) -> bool:
    out = module.get_output_embeddings()  # type: ignore[operator]
    return out is not None and out.weight is module.get_input_embeddings().weight  # type: ignore[operator]


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.1f}"


def saved(module: nn.Module, tokenizer: Any, model: Backbone, folder: Path) -> None:
    """Writes the model and its tokenizer as a plain Hugging Face folder, whole or not at all.

    How a checkpoint's token states are pooled (sentence-transformers' `1_Pooling`) goes along.
    """
    building = folder.with_name(f".building-{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    module.save_pretrained(building)  # type: ignore[operator]
    tokenizer.save_pretrained(building)
    pooling = Path(model.path()) / "1_Pooling" if model.name else None
    if pooling and pooling.is_dir():
        shutil.copytree(pooling, building / "1_Pooling")
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
