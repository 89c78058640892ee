"""Classifiers on concepts: five heads."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization
from transformers.modeling_outputs import SequenceClassifierOutput

from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.decoders import decoder_of
from assay.engines.concepts.encoder import (
    PRETRAINING,
    ConceptModel,
    ConceptPreTrainedModel,
    tuple_if_asked,
)
from assay.engines.concepts.layers import Attention, FeedForward, norm


class QueryPool(nn.Module):
    """One learned query reads the concepts.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.asks = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.read_norm, self.read = norm(config), Attention(config)
        self.feed_norm, self.feed = norm(config), FeedForward(config)
        self.last_norm = norm(config)

    def first_weights(self, std: float) -> None:
        """Of the query."""
        initialization.normal_(self.asks, mean=0.0, std=std)

    def forward(self, concepts_BCH: Tensor) -> Tensor:
        """[B, H]."""
        x = self.asks.expand(len(concepts_BCH), -1, -1)
        x = x + self.read(self.read_norm(x), concepts_BCH)
        out: Tensor = self.last_norm(x + self.feed(self.feed_norm(x)))[:, 0]
        return out


class WeightedPool(nn.Module):
    """A mean of concepts, weighted by what each says of itself.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.score, self.norm = nn.Linear(config.hidden_size, 1), norm(config)

    def forward(self, concepts_BCH: Tensor) -> Tensor:
        """[B, H]."""
        shares = self.score(concepts_BCH).softmax(1)
        out: Tensor = self.norm((shares * concepts_BCH).sum(1))
        return out


class MeanPool(nn.Module):
    """The mean of the concepts; nothing is learned."""

    def forward(self, concepts_BCH: Tensor) -> Tensor:
        """[B, H]."""
        return concepts_BCH.mean(1)


class ConceptForSequenceClassification(ConceptPreTrainedModel):
    """A label, or a number, for a text or a pair of texts.

    The head "decoder" goes on with the pretrained decoder, and takes the mean of its rows; its weights
    and the encoder's are found in a stored `ConceptForMaskedLM` by their names. The head "pair" reads two
    texts one by one (give `input_ids_b`); the others read a pair as one text.

    Args:
        config: All settings; `num_labels` 1 is a regression.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__(config)
        self.encoder = ConceptModel(config)
        self.decoder = decoder_of(config) if config.head == "decoder" else None
        self.rows_norm = norm(config) if config.head == "decoder" else None
        pools = {"cls-query": QueryPool, "weighted": WeightedPool}
        kind = pools.get(config.head)
        self.pool = MeanPool() if kind is None else kind(config)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        wide = 4 * config.hidden_size if config.head == "pair" else config.hidden_size
        self.classifier = nn.Linear(wide, int(config.num_labels or 2))
        self.post_init()

    def _left_unread(self) -> set[str]:
        """What a pretrained model has besides. What it lacks is told: a new head begins as first weights."""
        return {*PRETRAINING, *([r"^decoder\."] if self.decoder is None else [])}

    @tuple_if_asked
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        input_ids_b: Tensor | None = None,
        attention_mask_b: Tensor | None = None,
        **asked: Any,
    ) -> SequenceClassifierOutput:
        """Logits, and the loss if there are labels.

        Args:
            input_ids: Texts [B, N].
            attention_mask: Of them.
            labels: Classes or numbers, [B] or [B, 1].
            input_ids_b: Second texts, of the head "pair".
            attention_mask_b: Of them.
            **asked: For the encoder, of the (first) texts: `output_hidden_states`, `output_attentions`.
                `return_dict=False` for a tuple.

        Raises:
            ValueError: Second texts are missing, or nobody reads them.
        """
        if (input_ids_b is None) == (self.config.head == "pair"):
            raise ValueError(
                'the head "pair" reads two texts one by one, input_ids and input_ids_b, and no other head does; '
                f'this is head = "{self.config.head}"'
            )
        read = self.encoder(input_ids, attention_mask, return_dict=True, **asked)
        found = self._features(read.last_hidden_state, input_ids, attention_mask)
        if input_ids_b is not None:
            read_b = self.encoder(input_ids_b, attention_mask_b, return_dict=True)
            second = read_b.last_hidden_state
            other = self._features(second, input_ids_b, attention_mask_b)
            found = torch.cat([found, other, (found - other).abs(), found * other], dim=-1)
        logits = self.classifier(self.dropout(found))
        return SequenceClassifierOutput(
            loss=self._loss(logits, labels),
            logits=logits,
            hidden_states=read.hidden_states,
            attentions=read.attentions,
        )

    def _features(self, concepts: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        if self.decoder is None or self.rows_norm is None:
            pooled: Tensor = self.pool(concepts)
            return pooled
        seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        nothing_hidden = concepts.new_zeros(len(concepts))
        rows = self.decoder(concepts, ids, self.encoder.embedding, nothing_hidden, seen)
        rows = self.rows_norm(rows)
        share = seen[..., None].to(rows.dtype)
        mean: Tensor = (rows * share).sum(1) / share.sum(1).clamp(min=1)
        return mean

    def _loss(self, logits: Tensor, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        if self.config.num_labels == 1:
            # Labels [B, 1] beside logits [B] would be compared each with each.
            return functional.mse_loss(logits[:, 0], labels.reshape(-1).to(logits.dtype))
        return functional.cross_entropy(logits, labels.reshape(-1))
