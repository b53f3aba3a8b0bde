"""A model as a plain Hugging Face folder, which transformers loads without raymeta.

A meta-trained model becomes an encoder for `AutoModel`; what else it knows (its head, learned step sizes, adapters) lies beside
it in raymeta.safetensors. An adapted model becomes a classifier, for `AutoModelForSequenceClassification` or
`AutoModelForTokenClassification`: of transformers' own class where that computes the same, which is tried and not guessed, else
of the one in `raymeta.modeling_raymeta`, whose code goes along. A model that writes texts is, adapted or not, a language model
for `AutoModelForSeq2SeqLM` or `AutoModelForCausalLM`.
"""

import inspect
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raymeta import modeling_raymeta
from raymeta.errors import UserError
from raymeta.layers import Params, TaskLinear
from raymeta.lora import Lora, injected, merged, plain_name
from raymeta.model import Backbone, Network

_BESIDE = "raymeta.safetensors"
_NEAR = 1e-5
WRITERS = ("Seq2SeqLM", "CausalLM")
"""What follows `AutoModelFor` of models that write texts."""


@dataclass(frozen=True)
class Sample:
    """A text, and what the exported model must answer: ids [token], places [item] of the items' tokens (None: the item is the
    text), logits [item, output]."""

    ids: Tensor
    places: Tensor | None
    logits: Tensor


def write_encoder(network: Network, params: Params, tokenizer: Any, folder: Path) -> str:
    """Writes the encoder, and beside it what it does not hold; gives the name of the class that loads it."""
    config = _config(network)
    name = _alone(config)
    model = _made(name, config)
    if model is None:
        raise UserError(f"export: transformers has no class for the encoder of a {config.model_type} alone")
    plain = _plain(network, params)
    _fill(_encoder_of(model), plain)
    _write(model, tokenizer, folder)
    _write_beside({n: p for n, p in params.items() if n not in plain}, folder)
    return name


def write_writer(
    network: Network, params: Params, tokenizer: Any, longest: int | None, folder: Path
) -> tuple[str, str]:
    """Writes a model with its own output layer, whose `generate` writes up to `longest` tokens, the likeliest each time; gives
    what follows `AutoModelFor`, and the name of the class."""
    config = _config(network)
    config.tie_word_embeddings = network.tied
    kind = WRITERS[network.encoder is None]
    model = _made(f"AutoModelFor{kind}", config)
    plain = _plain(network, params)
    if model is None or plain.keys() != {n for n, _ in model.named_parameters()}:
        raise UserError(
            f"export: transformers has no class that holds this {type(network.module).__name__} and nothing more"
        )
    _fill(model, plain)
    model.generation_config = transformers.GenerationConfig.from_model_config(config)
    model.generation_config.update(do_sample=False, num_beams=1, max_new_tokens=longest)
    _write(model, tokenizer, folder)
    _write_beside({n: p for n, p in params.items() if n not in plain}, folder)
    return kind, type(model).__name__


def write_classifier(
    network: Network,
    params: Params,
    tokenizer: Any,
    kind: str,
    names: Sequence[str],
    samples: Sequence[Sample],
    folder: Path,
) -> str:
    """Writes the encoder with its head (`head.weight` and `head.bias` of `params`) for `AutoModelFor{kind}`, outputs named
    `names`; gives the name of the class. Raises UserError where no class gives the samples' logits."""
    normalize = bool(getattr(network.head, "normalize", False))
    plain = _plain(network, params)
    off = float("inf")
    for own in (False, True):
        config = _config(network)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
        model: Any = None
        if own:
            model = getattr(modeling_raymeta, f"RaymetaFor{kind}")(_own_config(config, network.pooling, normalize))
        elif kind == "TokenClassification" and not normalize:
            model = _made(f"AutoModelFor{kind}", config)
        top = None if model is None else _top(model)
        if top is None:
            continue
        _fill(_encoder_of(model), plain)
        _fill(top, {"weight": params["head.weight"], "bias": params["head.bias"]})
        off = _distance(model.eval(), samples)
        if off <= _NEAR:
            if own:
                auto = {"AutoConfig": "RaymetaConfig", f"AutoModelFor{kind}": type(model).__name__}
                model.config.auto_map = {k: f"modeling_raymeta.{v}" for k, v in auto.items()}
            _write(model, tokenizer, folder)
            if own:
                shutil.copyfile(modeling_raymeta.__file__, folder / "modeling_raymeta.py")
            held = {*network.base, "head.weight", "head.bias"}
            _write_beside({n: p for n, p in params.items() if n not in held}, folder)
            return type(model).__name__
    raise UserError(
        f"export: no class answers as this {type(network.module).__name__} does (logits are off by {off:.1e}); tell raymeta's authors"
    )


def read(backbone: Backbone, kind: str, outputs: int, slots: int, folder: Path) -> tuple[Network, Params]:
    """What `write_encoder` (kind: empty), `write_classifier` or `write_writer` wrote: the network, and the parameters by its names."""
    writes = kind in WRITERS
    if _settings(folder)["model_type"] == "raymeta":
        model = getattr(modeling_raymeta, f"RaymetaFor{kind}").from_pretrained(folder, dtype=torch.float32)
    else:
        config = transformers.AutoConfig.from_pretrained(folder)
        auto = getattr(transformers, f"AutoModelFor{kind}" if kind else _alone(config))
        model = auto.from_pretrained(folder, dtype=torch.float32, **_without_pooler(auto, config))
    top = _top(model) if kind and not writes else None
    module = model if writes else _encoder_of(model)
    plain = {n: p.detach().clone() for n, p in module.named_parameters()}
    if isinstance(backbone.adapt, Lora):
        module = injected(module, backbone.adapt.lora, 0)
    network = Network(backbone, module, outputs, 0, backbone.pooling, "all", slots, writes)
    params = network.params() | {n: plain[plain_name(n)] for n in network.base if plain_name(n) in plain}
    if top is not None:
        params |= {f"head.{n}": p.detach() for n, p in top.named_parameters()}
    if (folder / _BESIDE).is_file():
        params |= load_file(folder / _BESIDE)
    return network, params


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _config(network: Network) -> Any:
    """The encoder's configuration as its checkpoint has it."""
    path = network.backbone.path()
    if Path(path).is_dir():
        settings = _settings(Path(path))
        if settings["model_type"] == "raymeta":
            return transformers.AutoConfig.for_model(**settings["encoder"])
    found = transformers.AutoConfig.from_pretrained(path, trust_remote_code=network.backbone.trust_remote_code)
    if not type(found).__module__.startswith("transformers."):
        raise UserError(f"export: {path} is a model with code of its own, which the exported folder would lack")
    return found


def _own_config(config: Any, pooling: str, normalize: bool) -> modeling_raymeta.RaymetaConfig:
    encoder = {k: v for k, v in config.to_dict().items() if k not in ("id2label", "label2id", "architectures")}
    return modeling_raymeta.RaymetaConfig(
        encoder=encoder, pooling=pooling, normalize=normalize, id2label=config.id2label, label2id=config.label2id,
        pad_token_id=getattr(config, "pad_token_id", None), problem_type="single_label_classification",
    )  # fmt: skip


def _alone(config: Any) -> str:
    """The Auto class of an encoder without more."""
    return "AutoModelForTextEncoding" if _has_decoder(config) else "AutoModel"


def _has_decoder(config: Any) -> bool:
    """Whether the model that AutoModel makes of this configuration has a decoder too."""
    forward = getattr(transformers.MODEL_MAPPING.get(type(config), None), "forward", None)
    return forward is not None and "decoder_input_ids" in inspect.signature(forward).parameters


def _without_pooler(auto: Any, config: Any) -> dict[str, Any]:
    """The keyword that leaves out what a plain encoder has no use for, where there is one."""
    found = transformers.MODEL_MAPPING.get(type(config), None) if auto is transformers.AutoModel else None
    known = inspect.signature(found).parameters if isinstance(found, type) else {}
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def _made(name: str, config: Any) -> Any:
    """A new model of an Auto class, or None where it has none for this configuration."""
    auto = getattr(transformers, name)
    try:
        return auto.from_config(config, **_without_pooler(auto, config))
    except ValueError:
        return None


def _encoder_of(model: Any) -> nn.Module:
    found = model.base_model
    if _has_decoder(model.config):
        found = found.get_encoder()
    assert isinstance(found, nn.Module)
    return found


def _top(model: nn.Module) -> nn.Linear | None:
    """The linear layer that gives the logits."""
    return next((layer for layer in model.children() if isinstance(layer, nn.Linear)), None)


def _plain(network: Network, params: Params) -> Params:
    """The encoder's parameters, adapters merged into their layers."""
    own = {n: params[n].detach().cpu() for n in network.base}
    adapt = network.backbone.adapt
    if not isinstance(adapt, Lora):
        return own

    def transposed(layer: str) -> bool:
        found = network.module.get_submodule(layer)
        return found.transposed if isinstance(found, TaskLinear) else isinstance(found, Conv1D)

    return merged(own, adapt.lora, transposed)


@torch.no_grad()
def _fill(module: nn.Module, params: Params) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(params[name])


@torch.no_grad()
def _distance(model: nn.Module, samples: Sequence[Sample]) -> float:
    """How far the model's logits are from the wanted ones at most, relative to the largest of a text, or to 1."""
    off = 0.0
    for sample in samples:
        found = model(input_ids=sample.ids.unsqueeze(0)).logits[0]
        found = found.unsqueeze(0) if sample.places is None else found[sample.places]
        off = max(off, float((found - sample.logits).abs().max() / sample.logits.abs().max().clamp(min=1)))
    return off


def _write(model: Any, tokenizer: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.pad_token is None:  # to classify several texts at once; GPT-2 and Llama have none
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _write_beside(params: Params, folder: Path) -> None:
    (folder / _BESIDE).unlink(missing_ok=True)
    if params:
        save_file({n: p.detach().cpu().contiguous().clone() for n, p in params.items()}, folder / _BESIDE)
