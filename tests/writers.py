"""Tiny models that write texts, random episodes of sources and targets, and their inner loop written out plainly."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from raymeta.episodes import Episode, Examples
from raymeta.inner import Picks
from raymeta.layers import Params
from raymeta.model import Backbone, Network
from raymeta.tasks import mean_cross_entropy
from tests.tiny import whole

VOCABULARY, END = 24, 1
WRITERS = ("gpt2", "llama", "llama tied", "t5", "t5 untied")


class Writing:
    """What the engine asks of a task kind whose answers are texts."""

    generates = True

    def outputs_for(self, ways: int) -> int:
        raise AssertionError("the vocabulary tells")

    def picks(self, examples: Examples, pooling: str) -> Picks:
        raise AssertionError("the model tells")

    def targets(self, examples: Examples) -> Tensor:
        return examples.extra["target_ids"]

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return mean_cross_entropy(logits, targets, None)


def writer(family: str, layers: int = 2, hidden: int = 8, vocabulary: int = VOCABULARY) -> Any:
    """A tiny model of `family` with its output layer and random weights, far from linear."""
    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": vocabulary, "eos_token_id": END}
    if family == "gpt2":
        model: Any = GPT2LMHeadModel(
            GPT2Config(**common, n_embd=hidden, n_layer=layers, n_head=2, n_positions=64, bos_token_id=0)
        )
    elif family.startswith("llama"):
        model = LlamaForCausalLM(
            LlamaConfig(
                **common, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * hidden,
                max_position_embeddings=64, pad_token_id=0, bos_token_id=2, tie_word_embeddings=family.endswith("tied"),
            )
        )  # fmt: skip
    else:
        model = T5ForConditionalGeneration(
            T5Config(
                **common, d_model=hidden, d_kv=hidden // 2, d_ff=2 * hidden, num_layers=layers, num_decoder_layers=layers,
                num_heads=2, pad_token_id=0, decoder_start_token_id=0,
            )
        )  # fmt: skip
        if family.endswith("untied"):  # as T5 1.1's checkpoints are
            model.lm_head.weight = torch.nn.Parameter(torch.randn(vocabulary, hidden) * 0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def save_writer(family: str, folder: Path, **sizes: int) -> str:
    """The model as a folder."""
    writer(family, **sizes).save_pretrained(folder)
    return str(folder)


def load(folder: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Network:
    """The network in float64."""
    trained = settings.pop("trained", "all")
    network = Backbone.model_validate({"name": folder, **settings}).load(0, 0, trained, generates=True)
    return network.to(torch.device("cpu"), dtype)


def pairs(count: int, seed: int, longest: int = 6) -> Examples:
    """Random sources and targets."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=random)
    targets = torch.randint(1, longest, (count,), generator=random)
    ids = torch.randint(3, VOCABULARY, (int(lengths.sum()),), generator=random)
    answers = [
        torch.cat([torch.randint(3, VOCABULARY, (int(n),), generator=random), torch.tensor([END])]) for n in targets
    ]
    extra = {"target_ids": torch.cat(answers), "target_lengths": targets + 1}
    return Examples(ids, lengths, torch.arange(count), extra)


def asking(number: int = 0, shots: int = 2, queries: int = 3) -> Episode:
    """A random episode of texts to write."""
    return Episode(number, "train", (), pairs(shots, 2 * number + 1), pairs(queries, 2 * number + 2))


def texts(ids: Tensor, lengths: Tensor) -> list[Tensor]:
    """The texts one by one."""
    return list(torch.split(ids, lengths.tolist()))


def plain_loss(model: Any, params: Params, examples: Examples) -> Tensor:
    """The mean cross-entropy of the target tokens by the model's own forward, one text after the other."""
    lost, count = torch.zeros((), dtype=torch.float64), 0
    sources = texts(examples.ids, examples.lengths)
    for source, target in zip(
        sources, texts(examples.extra["target_ids"], examples.extra["target_lengths"]), strict=True
    ):
        if model.config.is_encoder_decoder:
            given = {"input_ids": source[None], "decoder_input_ids": torch.cat([torch.tensor([0]), target[:-1]])[None]}
            logits = functional_call(model, params, args=(), kwargs={**given, "use_cache": False}).logits[0]
        else:
            row = torch.cat([source, target])[None]
            found = functional_call(model, params, args=(), kwargs={"input_ids": row, "use_cache": False}).logits[0]
            logits = found[len(source) - 1 : -1]
        lost = lost + F.cross_entropy(logits, target, reduction="sum")
        count += len(target)
    return lost / count


def plain_meta_gradient(
    model: Any, params: Params, episodes: Sequence[Episode], rate: float, steps: int, moving: Sequence[str]
) -> tuple[Params, Tensor]:
    """MAML as it is written: gradient steps on the support loss, and the gradient of the query loss through them."""
    leaves = {n: p.detach().requires_grad_() for n, p in params.items()}
    total = torch.zeros((), dtype=torch.float64)
    for episode in episodes:
        now = dict(leaves)
        for _ in range(steps):
            grads = torch.autograd.grad(
                plain_loss(model, now, episode.support), [now[n] for n in moving], create_graph=True, allow_unused=True
            )
            now |= {n: now[n] - rate * g for n, g in zip(moving, grads, strict=True) if g is not None}
        total = total + plain_loss(model, now, episode.query)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), found, strict=True)}, total


def meta_gradient(algorithm: Any, network: Network, episodes: list[Episode], params: Params) -> Params:
    """The algorithm's meta-gradient, of all parameters."""
    inner = algorithm.bound(network, Writing(), episodes)
    found = algorithm.meta_step(inner, params, 1)
    return whole(found.grads, found.rows, network, params)


def query_loss(algorithm: Any, network: Network, episodes: list[Episode], params: Params, **options: Any) -> Tensor:
    """The sum of query losses after adaptation."""
    inner = algorithm.bound(network, Writing(), episodes)
    fast = algorithm.adapt(inner, inner.opened(params, learn=False), **options)
    return inner.query_losses(inner.query_logits(fast)).sum()


def plain_answers(model: Any, sources: Examples, limit: int) -> list[list[int]]:
    """The likeliest token each time by the model's own forward over all tokens, one text after the other."""
    answers = []
    for source in texts(sources.ids, sources.lengths):
        row, said = source, []
        while len(said) < limit:
            with torch.no_grad():
                if model.config.is_encoder_decoder:
                    known = torch.tensor([[0, *said]])
                    logits = model(input_ids=source[None], decoder_input_ids=known, use_cache=False).logits
                else:
                    logits = model(input_ids=row[None], use_cache=False).logits
            token = int(logits[0, -1].argmax())
            if token == END:
                break
            said.append(token)
            row = torch.cat([row, torch.tensor([token])])
        answers.append(said)
    return answers
