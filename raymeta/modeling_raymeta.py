"""A classifier of texts or of tokens that raymeta exported, for transformers' Auto classes.

This file goes along with an exported model and needs torch and transformers alone. Transformers' own classes put something
between encoder and output that an adapted model does not have (BERT's a pooler, RoBERTa's a layer of its own); here, token
states become a text's feature by their mean, or are its first or last one, are scaled to length 1 where the head was trained
so, and one linear layer scores them.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput


class RaymetaConfig(PretrainedConfig):  # type: ignore[misc]
    """encoder: the configuration of the encoder, with its model_type; pooling: mean, first or last; normalize: whether features
    are scaled to length 1."""

    model_type = "raymeta"

    def __init__(
        self, encoder: dict[str, Any] | None = None, pooling: str = "mean", normalize: bool = False, **rest: Any
    ) -> None:
        super().__init__(**rest)
        self.encoder, self.pooling, self.normalize = encoder or {}, pooling, normalize


class _Classifier(PreTrainedModel):  # type: ignore[misc]
    config_class = RaymetaConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: RaymetaConfig) -> None:
        super().__init__(config)
        settings = AutoConfig.for_model(**config.encoder)
        try:
            encoder = AutoModel.from_config(settings, add_pooling_layer=False)
        except TypeError:  # not every architecture has a pooler to leave out
            encoder = AutoModel.from_config(settings)
        two = "decoder_input_ids" in inspect.signature(encoder.forward).parameters
        self.encoder = encoder.get_encoder() if two else encoder
        self.classifier = nn.Linear(settings.hidden_size, config.num_labels)
        self.post_init()

    def _states(self, given: dict[str, Any]) -> Tensor:
        states: Tensor = self.encoder(**{k: v for k, v in given.items() if v is not None}).last_hidden_state
        return states

    def _scores(self, features: Tensor) -> Tensor:
        scores: Tensor = self.classifier(F.normalize(features, dim=-1, eps=1e-6) if self.config.normalize else features)
        return scores


class RaymetaForSequenceClassification(_Classifier):
    """Scores of each text, [text, label]."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **rest: Any
    ) -> SequenceClassifierOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = self._states({"input_ids": input_ids, "attention_mask": mask, **rest})
        place = torch.arange(mask.shape[1], device=mask.device)
        if self.config.pooling == "mean":
            there = mask.unsqueeze(-1).to(states.dtype)
            features = (states * there).sum(1) / there.sum(1)
        else:
            ends = (mask * (place + 1)).argmax(1) if self.config.pooling == "last" else mask.argmax(1)
            features = states[torch.arange(len(states), device=states.device), ends]
        scores = self._scores(features)
        loss = None if labels is None else F.cross_entropy(scores, labels)
        return SequenceClassifierOutput(loss=loss, logits=scores)


class RaymetaForTokenClassification(_Classifier):
    """Scores of each token, [text, token, label]; a word's are those of its first token."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **rest: Any
    ) -> TokenClassifierOutput:
        scores = self._scores(self._states({"input_ids": input_ids, "attention_mask": attention_mask, **rest}))
        loss = None if labels is None else F.cross_entropy(scores.flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=scores)
