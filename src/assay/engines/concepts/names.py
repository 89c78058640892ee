"""What a run is called, as the source's registry has it. No torch here."""

from datetime import datetime

from assay.engines.concepts.config import PretrainConfig

MASKED = {
    "perceiver": "perceiver_mlm",
    "position": "perceiver_posonly_mlm",
    "weighted": "weighted_mlm",
}


def architecture(config: PretrainConfig, plain_layers: int | None = None) -> str:
    """Objective and sizes in one word, such as perceiver_mlm_H512L6C128.

    `_T` the numbers of a token's embedding and `_pos` the kind of places of slots, where they are not
    the usual ones.

    Args:
        config: Of the run.
        plain_layers: Of the plain encoder that the run stored. It has as many as give the size of a concept
            encoder of `config.layers` layers, and which these are depends on its tokenizer; None where it
            has stored none yet, and then they are not named.
    """
    c = config
    sizes = f"H{c.hidden}L{c.layers}C{c.slots}"
    if c.architecture == "bert":
        layers = "" if plain_layers is None else f"L{plain_layers}"
        return f"bert_{c.objective.replace('-', '_')}_H{c.hidden}{layers}"
    mark = "BiXT" if c.bidirectional else ""
    if c.objective in ("diffusion", "prefix"):
        return f"{c.objective}_{mark}{sizes}D{c.decoder_layers}"
    if c.objective == "tsdae":
        kind = "tsdae_posonly" if c.decoder == "position" else f"tsdae_{c.decoder}"
    else:
        kind = "recursive_mlm" if c.recursive else MASKED.get(c.decoder, f"{c.decoder}_mlm")
    token = f"_T{c.token_dim}" if c.token_dim else ""
    places = "" if c.slot_places == "none" else f"_pos{c.slot_places}"
    return f"{kind}_{mark}{sizes}{token}{places}"


def run_name(config: PretrainConfig, when: datetime, plain_layers: int | None = None) -> str:
    """The architecture and when it began, such as perceiver_mlm_H512L6C128_20260219_101500."""
    return f"{architecture(config, plain_layers)}_{when:%Y%m%d_%H%M%S}"


def concept_losses(config: PretrainConfig) -> str:
    """Concept losses and their weighting in one word, such as combined+kendall-gal; "none" without."""
    if not config.concept_losses:
        return "none"
    weighting = (
        f"fixed {config.concept_weight:g}" if config.weighting == "fixed" else config.weighting
    )
    return "+".join(config.concept_losses) + f" ({weighting})"
