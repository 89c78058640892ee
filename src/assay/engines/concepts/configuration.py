"""Settings of a concept encoder and of what is trained on top of it."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from assay.engines.concepts.config import (
    ConceptLoss,
    Decoder,
    Head,
    Modulation,
    SlotPlaces,
    TimeWeight,
    Weighting,
)


@strict
class ConceptConfig(PreTrainedConfig):
    """A text of N tokens as C concept vectors of H numbers, and what reads them.

    Everything that decides what a stored model computes, or what it is trained for, is here, so that
    `from_pretrained` gives the same model.

    Attributes:
        vocab_size: V, of the tokenizer.
        concept_num: C, slots.
        hidden_size: H.
        token_embedding_dim: Numbers of a token's embedding; None for H, others are projected to H.
        num_hidden_layers: Layers of the encoder.
        num_attention_heads: Heads; H must be a multiple.
        intermediate_size: Inner width of the feed-forward parts.
        hidden_dropout_prob: Of embeddings and feed-forward parts.
        attention_probs_dropout_prob: Of attention weights.
        max_position_embeddings: Longest text, in tokens.
        concept_position_type: Added to the slots: nothing, fixed waves or learned numbers.
        initializer_range: Deviation of first weights.
        layer_norm_eps: Of every layer norm.
        bidirectional: Tokens read the concepts too, in every layer (BiXT, Hiller et al. 2024).
        recursive: One layer, applied again and again with the same weights.
        num_iterations: How often; 0 for `num_hidden_layers` times. May be changed after training.
        decoder_type: What rebuilds the tokens: "perceiver" queries by the (masked) token and its place,
            "position" by its place alone, "weighted" mixes concepts by a learned matrix,
            "diffusion" by a partly hidden text and the time.
        decoder_layers: Of the diffusion decoder.
        modulation: How the time reaches a diffusion layer: "zero" (adaLN-Zero: scale, shift and gates
            that begin at 0; Peebles & Xie 2023), "normal" (the same, beginning as any weight),
            "plain" (scale and shift before self-attention, no gates), "plain-alone" (the same
            without self-attention).
        time_scale: The time is multiplied by this before its waves.
        t_min: Smallest share of hidden tokens in training.
        time_weight: Of a sample's loss: "none", "clamped" (1 / max(t, 0.1), divided by their sum),
            "elbo" (1 / t, divided by all tokens; Sahoo et al. 2024, eq. 11).
        label_smoothing: Of the cross-entropy, in training only.
        concept_losses: Added in training; see `assay.engines.concepts.regularisers`.
        concept_weight: Of all of them together under "fixed", divided equally.
        weighting: Of task and concept losses; see `assay.engines.concepts.weighting`.
        head: Of the classifier.
        classifier_dropout: Before the classifier's last layer; None for `hidden_dropout_prob`.
        dense_head: Compute the logits of every token, where otherwise only tokens with a label have
            any. The loss is the same; it costs more, and is here to be compared with.
        mask_token_id: Of the tokenizer, as are the other ids.
        vocabulary_digest: Of the tokens with their ids; set when the model is stored, and compared with the
            tokenizer beside it when it is loaded.
        tie_word_embeddings: The last layer's weights are the token embeddings; these must then have
            H numbers.

    Raises:
        StrictDataclassError: Values of the wrong type, or that do not go together.
    """

    model_type = "concept_encoder"
    # The library's Trainer hands all other outputs to compute_metrics: the logits alone are answers.
    keys_to_ignore_at_inference = ["task_loss", "concept_losses", "concepts"]  # noqa: RUF012

    vocab_size: int = 30522
    concept_num: int = 128
    hidden_size: int = 512
    token_embedding_dim: int | None = None
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 2048
    concept_position_type: SlotPlaces = "none"
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    bidirectional: bool = False
    recursive: bool = False
    num_iterations: int = 0
    decoder_type: Decoder = "perceiver"
    decoder_layers: int = 2
    modulation: Modulation = "zero"
    time_scale: float | int = 1000.0
    t_min: float | int = 0.05
    time_weight: TimeWeight = "none"
    label_smoothing: float | int = 0.0
    concept_losses: list[ConceptLoss] = field(default_factory=list)
    concept_weight: float | int = 0.1
    weighting: Weighting = "fixed"
    head: Head = "weighted"
    classifier_dropout: float | int | None = None
    dense_head: bool = False
    pad_token_id: int | None = 0
    mask_token_id: int | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    vocabulary_digest: str | None = None
    tie_word_embeddings: bool = False

    def validate_concepts(self) -> None:
        """Sizes and shares are possible, and go together; called whenever a configuration is made."""
        for name in (
            "vocab_size", "concept_num", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "decoder_layers",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more; got {getattr(self, name)}.")
        if self.concept_num > self.max_position_embeddings:
            raise ValueError(
                "concept_num must be at most max_position_embeddings: more concepts than tokens squeeze nothing; got "
                f"{self.concept_num} and {self.max_position_embeddings}. Give fewer, or room for longer texts."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads; got {self.hidden_size} and "
                f"{self.num_attention_heads}. Give a number of heads that divides it."
            )
        if self.num_iterations < 0 or (self.num_iterations and not self.recursive):
            raise ValueError(
                f"num_iterations is of the recursive encoder, 0 or more; got {self.num_iterations} with "
                f"recursive = {self.recursive}."
            )
        if self.tie_word_embeddings and self.token_embedding_dim not in (None, self.hidden_size):
            raise ValueError(
                "tie_word_embeddings needs token embeddings of hidden_size numbers; got "
                f"token_embedding_dim = {self.token_embedding_dim} and hidden_size = {self.hidden_size}. Give "
                "tie_word_embeddings = False, or token_embedding_dim = None."
            )
        for name in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "t_min",
            "label_smoothing",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1); got {getattr(self, name)}.")
        if len(set(self.concept_losses)) != len(self.concept_losses):
            raise ValueError(f"concept_losses must differ; got {self.concept_losses}.")

    @property
    def iterations(self) -> int:
        """How often a layer is applied."""
        return self.num_iterations or self.num_hidden_layers

    @property
    def embedding_dim(self) -> int:
        """Numbers of a token's embedding."""
        return self.token_embedding_dim or self.hidden_size
