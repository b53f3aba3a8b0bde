"""What an adapted model writes: as the library's own model with the same parameters would."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from raymeta.adapt import PROMPT
from raymeta.algorithms.maml import Maml
from raymeta.episodes import Examples
from raymeta.errors import UserError
from raymeta.plain import whole
from raymeta.writing import Sampling, end_of, written
from tests.tiny import double_inside
from tests.writers import (
    END,
    VOCABULARY,
    WRITERS,
    Writing,
    asking,
    load,
    pairs,
    plain_answers,
    plain_loss,
    save_writer,
    texts,
    writer,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: save_writer(family, Path(tmp_path_factory.mktemp("writer"))) for family in WRITERS}


@pytest.mark.parametrize("family", WRITERS)
def test_an_unadapted_model_writes_what_the_library_s_own_does(folders, family):
    network, model, sources = load(folders[family]), writer(family).double(), pairs(5, 0)
    found = written(network, network.params(), sources, END, 8)
    assert found == plain_answers(model, sources, 8)
    assert found == written(network, network.params(), sources, END, 8)
    assert len({len(answer) for answer in found}) > 1 or all(len(answer) == 8 for answer in found)
    by_library = []
    for source in texts(sources.ids, sources.lengths):
        row = model.generate(source[None], max_new_tokens=8, do_sample=False, pad_token_id=0)[0].tolist()
        row = row[1:] if model.config.is_encoder_decoder else row[len(source) :]
        by_library.append(row[: row.index(END)] if END in row else row)
    assert found == by_library


ADAPTS = ["all", {"last": 1}, {"prompt": {"tokens": 3}}, {"lora": {"rank": 2}}]


@pytest.mark.parametrize("linear", ["materialised", "dual"])
@pytest.mark.parametrize("adapt", ADAPTS, ids=str)
@pytest.mark.parametrize("family", WRITERS)
def test_an_adapted_model_writes_and_scores_as_the_library_s_own_with_its_parameters(folders, family, adapt, linear):
    if "lora" in adapt:
        pytest.importorskip("peft", reason="needs the extra `lora`")
    network, episode = load(folders[family], adapt=adapt), asking(0, 4, 5)
    maml = Maml(inner_lr=0.5, inner_steps=3, linear=linear)
    with double_inside(), torch.no_grad():
        inner = maml.bound(network, Writing(), [episode], learn=False)
        fast = maml.adapt(inner, inner.opened(network.params()))
        params = whole(inner, fast, network.params())
        lost = inner.query_losses(inner.query_logits(fast))
        found = written(network, params, episode.query, END, 8)
    model = copy.deepcopy(network.plain)
    model.load_state_dict({n: p for n, p in params.items() if n in network.base}, strict=False)
    if PROMPT in params:
        assert not torch.equal(params[PROMPT], network.params()[PROMPT])
        model = Prompted(model, params[PROMPT])
    with double_inside(), torch.no_grad():
        torch.testing.assert_close(plain_loss(model, {}, episode.query), lost[0], rtol=1e-10, atol=0)
        assert found == plain_answers(model, episode.query, 8)


class Prompted(torch.nn.Module):
    """A model that reads vectors before each source."""

    def __init__(self, model, prompt):
        super().__init__()
        self.model, self.prompt, self.config = model, prompt, model.config

    def forward(self, input_ids, **given):
        embedded = F.embedding(input_ids, self.model.get_input_embeddings().weight)
        out = self.model(inputs_embeds=torch.cat([self.prompt[None], embedded], 1), **given)
        if not self.config.is_encoder_decoder:
            out.logits = out.logits[:, len(self.prompt) :]
        return out


def test_answers_end_where_targets_do_and_are_never_longer_than_asked(folders):
    network, sources = load(folders["gpt2"]), pairs(6, 3)
    params = network.params()
    free = written(network, params, sources, VOCABULARY + 1, 10)
    assert {len(answer) for answer in free} == {10}
    end = free[0][4]
    for answer, whole_one in zip(written(network, params, sources, end, 10), free, strict=True):
        assert answer == whole_one[: whole_one.index(end) if end in whole_one else 10]
    assert end_of(sources) == END


def test_drawn_answers_are_those_of_their_seed(folders):
    network, sources = load(folders["t5"]), pairs(6, 3)

    def drawn(**how):
        return written(network, network.params(), sources, VOCABULARY + 1, 10, Sampling(**how))

    state = torch.get_rng_state()
    assert drawn(seed=1) == drawn(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn(seed=1) != drawn(seed=2)
    likeliest = written(network, network.params(), sources, VOCABULARY + 1, 10)
    assert drawn(temperature=1e-4) == likeliest
    assert drawn(top_p=1e-6) == likeliest
    assert drawn(temperature=5.0) != likeliest


def test_a_source_that_leaves_no_room_is_told(folders):
    network = load(folders["gpt2"])
    long = Examples(torch.full((64,), 5), torch.tensor([64]), torch.arange(1), {})
    with pytest.raises(UserError, match="64 tokens leaves no room for an answer among the 64 positions"):
        written(network, network.params(), long, END, 4)
    assert (
        len(written(network, network.params(), Examples(long.ids[:62], torch.tensor([62]), long.rows, {}), 99, 4)[0])
        == 2
    )
