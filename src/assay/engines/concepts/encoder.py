"""The encoder: C learned slots read the tokens of a text, layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, initialization
from transformers.utils.generic import ModelOutput, can_return_tuple

from assay.core.errors import ConfigError
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.layers import Attention, GatedFeedForward, TokenEmbedding, norm, waves

Forward = TypeVar("Forward", bound=Callable[..., ModelOutput])


def tuple_if_asked(forward: Forward) -> Forward:
    """A model's outputs as a tuple where `return_dict=False` is asked for, by the call or the settings."""
    return cast(Forward, can_return_tuple(forward))


class ConceptLayer(nn.Module):
    """Slots read the tokens, then one another, then each is computed by itself.

    Only what asks is normalised; the tokens are read as they are, and stay as they are unless the
    layer is bidirectional: then they read the slots, by weights of their own.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.read_norm, self.read = norm(config), Attention(config)
        self.mix_norm, self.mix = norm(config), Attention(config)
        self.feed_norm, self.feed = norm(config), GatedFeedForward(config)
        self.answer_norm = norm(config) if config.bidirectional else None
        self.answer = Attention(config) if config.bidirectional else None

    def forward(
        self, concepts_BCH: Tensor, tokens_BNH: Tensor, mask_BN: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Slots and tokens after this layer."""
        c, t = concepts_BCH, tokens_BNH
        c = c + self.read(self.read_norm(c), t, mask_BN)
        if self.answer is not None and self.answer_norm is not None:
            t = t + self.answer(self.answer_norm(t), c)
        normed = self.mix_norm(c)
        c = c + self.mix(normed, normed)
        return c + self.feed(self.feed_norm(c)), t


@dataclass
class ConceptOutput(ModelOutput):
    """What the encoder gives.

    Attributes:
        last_hidden_state: Concepts [B, C, H].
        hidden_states: Concepts after each layer, before the last norm, the slots first; if asked for.
        attentions: How slots read the tokens in each layer, [B, heads, C, N]; if asked for.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


FETCHING = frozenset(
    {"cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder"}
)
"""Settings of `from_pretrained` that say where a checkpoint is."""
PRETRAINING = frozenset({r"^head\.weight$", r"^loss_weights\.raw$"})
"""Patterns of weights that pretraining alone needs, whatever the decoder."""
LATER_LAYERS = r"^(encoder\.)?layers\.[1-9]"
"""Pattern of the encoder's layers but the first, which is all that a recursive one takes of another."""


class ConceptPreTrainedModel(PreTrainedModel):
    """First weights, loading and saving of all models of this package."""

    config: ConceptConfig
    config_class = ConceptConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    _supports_sdpa = True
    accepts_loss_kwargs = False
    """Losses are means of their own batch; the library's Trainer must divide them where it adds up several."""

    def post_init(self) -> None:
        """As the library's; but what a part may leave unread when it is loaded alone, the whole may not.

        The library lets a model ignore what its parts ignore: a decoder's layers that do not fit the
        settings would then be left out without a word.
        """
        super().post_init()
        later = {LATER_LAYERS} if self.config.recursive else set()
        self._keys_to_ignore_on_load_unexpected = self._left_unread() | later

    def _left_unread(self) -> set[str]:
        """Patterns of weights that this model may leave in a checkpoint without a word."""
        return set()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As the library's, which knows nothing of the diffusion decoder's own embedding of tokens."""
        made: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        decoder: Any = getattr(self, "decoder", None)
        own = getattr(decoder, "tokens", None)
        if own is not None:
            decoder.tokens = self._get_resized_embeddings(
                own, made.num_embeddings, mean_resizing=kwargs.get("mean_resizing", True)
            )
        return made

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, **settings: Any
    ) -> Any:
        """As the library's; but a checkpoint of another kind is refused, which it would load as random weights.

        Raises:
            ConfigError: It is of another kind.
        """
        place = pretrained_model_name_or_path
        if settings.get("config") is None and place is not None:
            asked = {name: settings[name] for name in FETCHING & settings.keys()}
            found, _ = ConceptConfig.get_config_dict(place, **asked)
            kind = found.get("model_type", ConceptConfig.model_type)
            if kind != ConceptConfig.model_type:
                raise ConfigError(
                    f"{cls.__name__} loads checkpoints of type {ConceptConfig.model_type!r}; {str(place)!r} is of "
                    f"type {kind!r}. Load it with the library's Auto classes."
                )
        return super().from_pretrained(place, *model_args, **settings)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """First weights: normal, biases 0; parts that say so begin as they say.

        The library's own rule would draw every linear layer anew, gates that must begin at 0 too, and
        would not touch parameters that stand alone.
        """
        own = getattr(module, "first_weights", None)
        if own is not None:
            own(self.config.initializer_range)
        elif isinstance(module, nn.Linear | nn.Embedding):
            zero = getattr(module, "begins_at_zero", False)
            std = 0.0 if zero else self.config.initializer_range
            initialization.normal_(module.weight, mean=0.0, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            initialization.ones_(module.weight)
            initialization.zeros_(module.bias)


class Slots(nn.Module):
    """C learned vectors from which every text's concepts begin.

    Args:
        config: Sizes, and what is added to tell slots apart.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.concept_num, config.hidden_size))
        self.kind = config.concept_position_type
        shape = (config.concept_num, config.hidden_size)
        self.places = nn.Parameter(torch.empty(shape)) if self.kind == "learned" else None

    def first_weights(self, std: float) -> None:
        """Twice as wide as other weights, at most 1."""
        initialization.normal_(self.weight, mean=0.0, std=min(2 * std, 1.0))
        if self.places is not None:
            initialization.normal_(self.places, mean=0.0, std=std)

    def _waves(self) -> Tensor:
        places = torch.arange(len(self.weight), device=self.weight.device)
        return waves(places, self.weight.shape[1]).to(self.weight.dtype)

    def forward(self) -> Tensor:
        """[C, H]."""
        if self.places is not None:
            return self.weight + self.places
        if self.kind == "sinusoidal":
            return self.weight + self._waves()
        return self.weight


class ConceptModel(ConceptPreTrainedModel):
    """A text as C concept vectors.

    Args:
        config: All settings.
    """

    def __init__(self, config: ConceptConfig) -> None:
        super().__init__(config)
        self.embedding = TokenEmbedding(config)
        self.slots = Slots(config)
        kinds = 1 if config.recursive else config.num_hidden_layers
        self.layers = nn.ModuleList(ConceptLayer(config) for _ in range(kinds))
        self.last_norm = norm(config)
        self.post_init()

    def _left_unread(self) -> set[str]:
        """All of the models that this is a part of: to load the encoder alone is what they are trained for."""
        around = {r"^decoder\.", r"^pool\.", r"^rows_norm\.", r"^classifier\.(weight|bias)$"}
        return around | PRETRAINING

    def get_input_embeddings(self) -> nn.Embedding:
        """Of the tokens."""
        return self.embedding.tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace them."""
        assert isinstance(value, nn.Embedding)
        self.embedding.tokens = value

    def in_order(self) -> list[ConceptLayer]:
        """Layers as they are applied; of the recursive encoder the one, as often as the settings say."""
        layers: list[Any] = list(self.layers)
        return layers * self.config.iterations if self.config.recursive else layers

    @tuple_if_asked
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **_: Any,
    ) -> ConceptOutput:
        """Concepts of texts.

        Args:
            input_ids: Tokens [B, N].
            attention_mask: 1 where there is a token, 0 where the text is filled up, [B, N]; None: all.
            output_hidden_states: Give those of every layer too; by default as the settings say, which is no.
            output_attentions: Give how slots read, by default likewise; computes it a second time, so it is
                for analysis.
            **_: `return_dict=False` for a tuple; the rest is not used.

        Raises:
            ConfigError: A text is longer than the model has places, has ids beyond the vocabulary, or is
                filled up on the left.
        """
        check_ids(self.config, input_ids)
        mask = None if attention_mask is None else attention_mask.bool()
        check_begins(mask)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        tokens = self.embedding(input_ids)
        concepts = self.slots().expand(len(input_ids), -1, -1)
        states, reads = [concepts], []
        for layer in self.in_order():
            if output_attentions:
                reads.append(layer.read.weights(layer.read_norm(concepts), tokens, mask))
            concepts, tokens = layer(concepts, tokens, mask)
            states.append(concepts)
        return ConceptOutput(
            last_hidden_state=self.last_norm(concepts),
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(reads) if output_attentions else None,
        )


def check_ids(config: ConceptConfig, ids_BN: Tensor) -> None:
    """Texts must fit a model's places and vocabulary.

    Raises:
        ConfigError: They do not.
    """
    if ids_BN.shape[1] > config.max_position_embeddings:
        raise ConfigError(
            f"A text must have at most max_position_embeddings = {config.max_position_embeddings} tokens; got "
            f"{ids_BN.shape[1]}. Cut it (truncation=True, max_length=…), or train a model with more places."
        )
    if torch.compiler.is_compiling():
        return
    least, most = (int(x) for x in ids_BN.aminmax()) if ids_BN.numel() else (0, 0)
    if least < 0 or most >= config.vocab_size:
        raise ConfigError(
            f"Ids must be 0 or more and below vocab_size = {config.vocab_size}; got {least} to {most}. The tokenizer is "
            "not the one that the model was trained with: load it from the same checkpoint."
        )


def check_begins(mask_BN: Tensor | None) -> None:
    """Texts must begin at the first place: places are counted from there, so that others would move concepts.

    Raises:
        ConfigError: One is filled up on the left.
    """
    if mask_BN is None or torch.compiler.is_compiling() or not mask_BN.numel():
        return
    late = ~mask_BN[:, 0] & mask_BN.any(1)
    if late.any():
        raise ConfigError(
            "A text must begin at the first place and be filled up on the right, since places are counted from there; "
            f"text {int(late.nonzero()[0, 0])} of the batch begins with attention_mask = 0. Set "
            'tokenizer.padding_side = "right".'
        )
