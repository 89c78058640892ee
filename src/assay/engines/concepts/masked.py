"""Encoder and decoder together: hidden tokens are rebuilt from the concepts of a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.utils.generic import ModelOutput

from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.decoders import decoder_of
from assay.engines.concepts.encoder import (
    ConceptModel,
    ConceptOutput,
    ConceptPreTrainedModel,
    check_ids,
    tuple_if_asked,
)
from assay.engines.concepts.regularisers import REGULARISERS
from assay.engines.concepts.weighting import LossWeights

IGNORED = -100
"""Label of a token that is not asked for."""
LEAST_TIME = 0.1
"""Times below it weigh like it under "clamped"."""


@dataclass
class MaskedOutput(ModelOutput):
    """What the model gives.

    Attributes:
        loss: With labels: the task's loss, in training with the concept losses and their weights.
        logits: [B, N, V] without labels, and with `dense_head`; otherwise with labels those of the labelled
            tokens alone, text by text, [labelled, V], beside which stands `labels[labels != -100]`.
        task_loss: Of the task alone, nats a token where `time_weight` is "none".
        concept_losses: Name → concept loss, in training.
        concepts: [B, C, H].
        hidden_states: Of the encoder, if asked for; see `ConceptOutput`.
        attentions: Of the encoder, if asked for.
    """

    # The library's tools take what comes after the loss for the answers.
    loss: Tensor | None = None
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    concept_losses: Mapping[str, Tensor] | None = None
    concepts: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class ConceptForMaskedLM(ConceptPreTrainedModel):
    """Rebuilds tokens from concepts, by the decoder that the settings name.

    Args:
        config: All settings.
    """

    _tied_weights_keys = {"head.weight": "encoder.embedding.tokens.weight"}  # noqa: RUF012

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__(config)
        self.encoder = ConceptModel(config)
        self.decoder = decoder_of(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_weights = LossWeights(config)
        self.post_init()

    @property
    def _keys_to_ignore_on_save(self) -> set[str]:
        """The last layer's weights, as long as they are the token embeddings, which are stored anyway.

        The library leaves out what is tied by itself; but its Trainer, when it goes on from a checkpoint,
        misses all that this does not name. What is tied is looked at, since it may be untied after loading.
        """
        tied = hasattr(self, "head") and self.head.weight is self.encoder.embedding.tokens.weight
        return set(self._tied_weights_keys) if tied else set()

    @_keys_to_ignore_on_save.setter
    def _keys_to_ignore_on_save(self, names: Any) -> None:
        """The library stores a copy of it; there is none to keep."""

    def get_output_embeddings(self) -> nn.Linear:
        """The last layer."""
        return self.head

    def set_output_embeddings(self, new: nn.Linear) -> None:
        """Replace it."""
        self.head = new

    @tuple_if_asked
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        time: Tensor | None = None,
        concepts: Tensor | None = None,
        *,
        divisor: Tensor | None = None,
        **asked: Any,
    ) -> MaskedOutput:
        """Rebuild.

        Args:
            input_ids: What the encoder reads, [B, N].
            attention_mask: Of it.
            labels: Tokens to rebuild, -100 elsewhere; as long as what the decoder sees.
            decoder_input_ids: What the decoder sees, [B, M]; by default what the encoder reads.
            decoder_attention_mask: Of that.
            time: Share of hidden tokens of each text [B], of the diffusion decoder.
            concepts: In place of `input_ids`, with `decoder_input_ids`.
            divisor: Of the summed loss, in place of this batch's own; see `loss_divisor`.
            **asked: For the encoder: `output_hidden_states`, `output_attentions`. `return_dict=False` for a tuple.
        """
        read: Any = ConceptOutput()
        if concepts is None:
            if input_ids is None:
                raise ValueError("give input_ids, or concepts and decoder_input_ids")
            read = self.encoder(input_ids, attention_mask, return_dict=True, **asked)
            concepts = read.last_hidden_state
        if decoder_input_ids is None:
            decoder_input_ids, decoder_attention_mask = input_ids, attention_mask
        if decoder_input_ids is None:
            raise ValueError("concepts need decoder_input_ids: which places are to be rebuilt")
        check_ids(self.config, decoder_input_ids)
        mask = None if decoder_attention_mask is None else decoder_attention_mask.bool()
        found = self._rebuilt(concepts, decoder_input_ids, mask, labels, time, divisor)
        found.hidden_states, found.attentions = read.hidden_states, read.attentions
        return found

    def _rebuilt(
        self,
        concepts: Tensor,
        decoder_input_ids: Tensor,
        mask: Tensor | None,
        labels: Tensor | None,
        time: Tensor | None,
        divisor: Tensor | None,
    ) -> MaskedOutput:
        embedding = self.encoder.embedding
        if labels is None:
            rows = self.decoder(concepts, decoder_input_ids, embedding, time, mask)
            return MaskedOutput(logits=self.head(rows), concepts=concepts)
        if self.config.dense_head or not self.decoder.rows_are_alone:
            rows = self.decoder(concepts, decoder_input_ids, embedding, time, mask)
            kept = labels != IGNORED
        else:
            places, kept = asked_places(labels)
            asked = decoder_input_ids.gather(1, places)
            rows = self.decoder(concepts, asked, embedding, time, None, places)
        logits, losses, where = self._losses(rows, kept, labels)
        if divisor is None:
            divisor = loss_divisor(self.config.time_weight, labels, mask, time)
        task = self._weighted(losses, where, time) / divisor
        extra = {name: REGULARISERS[name](concepts) for name in self._added()}
        return MaskedOutput(
            loss=self.loss_weights(task, extra) if extra else task,
            task_loss=task.detach(),
            concept_losses={name: loss.detach() for name, loss in extra.items()} or None,
            logits=logits,
            concepts=concepts,
        )

    def _added(self) -> list[str]:
        return list(self.config.concept_losses) if self.training else []

    def _losses(
        self, rows_BMH: Tensor, kept_BM: Tensor, labels_BN: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the loss of each labelled token, and in which text it is."""
        smoothing = float(self.config.label_smoothing) if self.training else 0.0
        if self.config.dense_head:
            logits = self.head(rows_BMH)
            scored = logits[kept_BM]
        else:
            logits = scored = self.head(rows_BMH[kept_BM])
        losses = functional.cross_entropy(
            scored, labels_BN[labels_BN != IGNORED], reduction="none", label_smoothing=smoothing
        )
        return logits, losses, kept_BM.nonzero()[:, 0]

    def _weighted(self, losses: Tensor, where: Tensor, time_B: Tensor | None) -> Tensor:
        """Sum of the losses of all labelled tokens, weighted by the time of their text."""
        kind = self.config.time_weight
        if kind == "none":
            return losses.sum()
        return (_weights(kind, time_B)[where] * losses).sum()


def asked_places(labels_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Where the labelled tokens of each text are, in order, [B, M], and which of these are some, [B, M].

    M is the largest number of labelled tokens of a text; those with fewer are filled up by others.
    """
    asked = labels_BN != IGNORED
    counts = asked.sum(1)
    most = max(1, int(counts.max()))
    places = asked.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return places, torch.arange(most, device=counts.device) < counts[:, None]


def _weights(kind: str, time_B: Tensor | None) -> Tensor:
    """Weight of each text."""
    if time_B is None:
        raise ValueError(f'time_weight = "{kind}" weighs by the time, which this batch lacks')
    return 1 / (time_B.clamp(min=LEAST_TIME) if kind == "clamped" else time_B)


def loss_divisor(
    kind: str, labels_BN: Tensor, mask_BN: Tensor | None = None, time_B: Tensor | None = None
) -> Tensor:
    """What the sum of weighted losses of a batch is divided by.

    Processes that train together divide by the mean of theirs, which makes their mean gradient that of
    one process with all texts.

    Args:
        kind: `time_weight` of the settings: labelled tokens ("none"), their weights ("clamped"), or all
            tokens ("elbo").
        labels_BN: -100 where nothing is asked.
        mask_BN: Of what the decoder sees.
        time_B: Of each text.
    """
    asked = (labels_BN != IGNORED).float()
    if kind == "elbo":
        return asked.new_tensor(labels_BN.numel()) if mask_BN is None else mask_BN.float().sum()
    if kind == "clamped":
        asked = asked * _weights(kind, time_B)[:, None]
    return asked.sum().clamp(min=1e-12)


@torch.no_grad()
def unmask(
    model: ConceptForMaskedLM,
    *,
    concepts: Tensor,
    length: int,
    steps: int = 10,
    temperature: float = 0.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Write texts from concepts: begin with all tokens hidden, and in each step keep the surest.

    Args:
        model: With the diffusion decoder; others rebuild in one step.
        concepts: [B, C, H], of `ConceptModel`.
        length: Tokens to write.
        steps: Steps.
        temperature: 0 takes the likeliest token; otherwise tokens are drawn.
        top_k: Draw among so many; 0 for all.
        generator: Of the draws.

    Returns:
        Ids [B, length].

    Raises:
        ValueError: The model's settings name no token for what is hidden, or a number is impossible.
    """
    hidden = model.config.mask_token_id
    if hidden is None:
        raise ValueError(
            "mask_token_id of the model's settings must be the tokenizer's mask token; it is None"
        )
    if steps < 1 or length < 1 or temperature < 0 or top_k < 0:
        raise ValueError(
            "steps and length must be 1 or more, temperature and top_k 0 or more; got "
            f"{steps}, {length}, {temperature}, {top_k}"
        )
    texts = len(concepts)
    ids = torch.full((texts, length), hidden, device=concepts.device)
    open_BN = torch.ones_like(ids, dtype=torch.bool)
    for step in range(steps):
        time = open_BN.float().mean(1)
        logits = model(concepts=concepts, decoder_input_ids=ids, time=time, return_dict=True).logits
        logits[..., hidden] = -torch.inf
        drawn, sureness = _drawn(logits, temperature, top_k, generator)
        left = length * (steps - 1 - step) // steps
        sureness = sureness.masked_fill(~open_BN, torch.inf)
        # Keep all but the `left` least sure; those written before are surer than any.
        kept = sureness.argsort(dim=1, descending=True)[:, : length - left]
        now = torch.zeros_like(open_BN).scatter_(1, kept, open_BN.gather(1, kept))
        ids = torch.where(now, drawn, ids)
        open_BN &= ~now
    return ids


def _drawn(
    logits_BNV: Tensor, temperature: float, top_k: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A token for each place, and its probability."""
    if temperature == 0:
        chances = logits_BNV.softmax(-1)
        sureness, drawn = chances.max(-1)
        return drawn, sureness
    scaled = logits_BNV / temperature
    if top_k:
        least = scaled.topk(min(top_k, scaled.shape[-1])).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    chances = scaled.softmax(-1)
    drawn = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view(
        logits_BNV.shape[:-1]
    )
    return drawn, chances.gather(-1, drawn[..., None])[..., 0]
