"""`assay concepts analyze`: what a stored encoder makes of texts, and whether it is well."""

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, validators

from assay.cli.common import Output, headed_table, print_json
from assay.core.errors import ConfigError
from assay.core.settings import Settings
from assay.engines.concepts.analysis_metrics import METRICS, STATIC, level
from assay.engines.concepts.corpus import PYTHON, corpus

Json = Annotated[bool, Parameter(name="--json", negative="")]
AtLeastOne = validators.Number(gte=1)
AtLeastTwo = validators.Number(gte=2)
LONGEST = 512
"""Tokens of a text where no length is given, as in the source log."""
ASKED = 4
"""Batches on which predictions and loss are looked at."""
LEVELS = (
    "Levels are those of the source log (S3), which had none for input_dependence.\n"
    "* Slots that are the same in every text satisfy it: read input_dependence first, and input_energy with it: "
    "slots that are all one vector have a high dependence, of next to nothing."
)


def analyze(
    checkpoint: Path,
    *,
    texts: Path | None = None,
    texts_from: str | None = None,
    count: Annotated[int, Parameter(validator=AtLeastTwo)] = 320,
    length: Annotated[int | None, Parameter(validator=AtLeastOne)] = None,
    figure: Path | None = None,
    json: Json = False,
) -> None:
    """Measure a stored encoder: rank, input dependence, likeness of slots, what slots read, health.

    Exit code 1 where health has findings.

    Args:
        checkpoint: Folder that save_pretrained wrote, with the tokenizer: ConceptModel,
            ConceptForMaskedLM or ConceptForSequenceClassification.
        texts: A text file, a text a line.
        texts_from: A corpus instead, whose held-out part is taken: python (the interpreter's own sources,
            the default), hub:NAME, or a name in the data folder. Take what the model was trained for.
        count: Texts at most, from all over the file or corpus.
        length: Tokens of a text at most. Default: 512, or the model's places where it has fewer.
        figure: Write one: .svg, .png or .pdf.
        json: Plain data, the values of each slot included.
    """
    if figure is not None:
        _part("analysis_figure").check(figure)
    stored_models = _part("stored")
    stored = stored_models.load(checkpoint)
    config = stored.model.config
    longest = _length(length, config.max_position_embeddings)
    chosen, source = _texts(texts, texts_from, count)
    batches = list(stored_models.encoded(chosen, stored.tokenizer, longest))
    asked = (stored_models.questions(stored, batch) for batch in islice(batches, ASKED))
    findings = _part("health").health(stored.model, asked)
    analysis = _analysis(stored.encoder, batches)
    if analysis is not None:
        findings += _part("health").concepts(analysis.measures)
    about = {
        "checkpoint": str(checkpoint),
        "class": type(stored.model).__name__,
        "slots": config.concept_num,
        "numbers": config.hidden_size,
        "layers": config.iterations,
        "parameters": sum(values.numel() for values in stored.model.parameters()),
        "texts": len(chosen),
        "texts_from": source,
        "tokens_at_most": longest,
    }
    if figure is not None and analysis is not None:
        title = f"{about['class']} {checkpoint.name}"
        _part("analysis_figure").draw(analysis, figure, title=title)
    if json:
        print_json(_plain(about, analysis, findings))
    else:
        _print(about, analysis, findings, Output())
    if findings:
        raise SystemExit(1)


def _part(name: str) -> Any:
    """A module of the engine. By name: torch and transformers are loaded when a command needs them."""
    return importlib.import_module(f"assay.engines.concepts.{name}")


def _length(asked: int | None, places: int) -> int:
    if asked is not None and asked > places:
        raise ConfigError(
            f"--length must be at most the model's max_position_embeddings = {places}; got {asked}."
        )
    return asked or min(LONGEST, places)


def _texts(path: Path | None, name: str | None, count: int) -> tuple[list[str], str]:
    """Texts, and what they are of."""
    if path is not None and name is not None:
        raise ConfigError(
            f"Texts must come from one place; got --texts {path} and --texts-from {name}. Leave out one."
        )
    stored = _part("stored")
    if path is not None:
        found, source = stored.read_texts(path), str(path)
    else:
        name = name or PYTHON
        held = corpus(name, Settings.from_environment().data_dir).held
        found, source = held, f"{name}, held out"
    chosen: list[str] = stored.spread(found, count)
    if len(chosen) < 2:
        raise ConfigError(
            f"Two texts or more are needed to see what depends on them; {source} has {len(chosen)}. Give more."
        )
    return chosen, source


def _analysis(encoder: Any, batches: list[Any]) -> Any | None:
    """All measures; None where concepts are not finite, which health tells."""
    analysis = _part("analysis")
    # A model that broke has no attention that sums to 1 either.
    plain = analysis.collect(encoder, batches[:1], attentions="none")
    if not plain.concepts_TCH.isfinite().all():
        return None
    collected = analysis.collect(encoder, batches, attentions="all")
    if not collected.concepts_TCH.isfinite().all():
        return None
    return analysis.analyse(collected.concepts_TCH, collected.attention)


def _plain(about: dict[str, Any], analysis: Any | None, findings: Sequence[Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {**about, "measures": None, "slot": None, "layer": None}
    if analysis is not None:
        plain["measures"] = {
            name: {"value": value, "level": level(name, value, slots=about["slots"])}
            for name, value in analysis.measures.items()
        }
        plain["slot"] = {"input_dependence": analysis.dependence_C.tolist()}
        plain["layer"] = [
            {
                "attention_entropy": use.entropy.tolist(),
                "attention_distance": use.distance.tolist(),
                "attention_share": use.share.tolist(),
                "attention_places": use.place.tolist(),
            }
            for use in analysis.attention
        ]
    return {**plain, "health": [asdict(finding) for finding in findings]}


def _print(
    about: dict[str, Any], analysis: Any | None, findings: Sequence[Any], console: Output
) -> None:
    console.print(
        f"{about['class']} of {about['checkpoint']}: {about['slots']} slots of {about['numbers']} numbers, "
        f"{about['layers']} layer(s), {about['parameters']:,} parameters"
    )
    console.print(
        f"{about['texts']} texts of {about['texts_from']}, of {about['tokens_at_most']} tokens at most\n"
    )
    if analysis is None:
        console.print("Nothing is measured: concepts are not finite.\n")
    else:
        table = headed_table("measure", "value", "level", "*", "what it means")
        table.columns[1].justify = "right"
        for name, value in analysis.measures.items():
            says, said = METRICS[name].says, level(name, value, slots=about["slots"]) or "–"
            star = "*" if says.endswith(STATIC) else ""
            table.add_row(name, f"{value:.4g}", said, star, says.removesuffix(STATIC).strip())
        console.print(table)
        console.print(f"{LEVELS}\n")
    if not findings:
        console.print("health: nothing found")
        return
    console.print(f"health: {len(findings)} finding(s)")
    table = headed_table("of", "must hold", "found", "what to do")
    for finding in findings:
        table.add_row(finding.name, finding.rule, finding.value, finding.advice)
    console.print(table)
