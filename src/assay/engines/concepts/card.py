"""A stored model's card, made from its settings and what was measured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from assay.core.errors import ConfigError
from assay.engines.concepts.analysis_metrics import METRICS as CONCEPTS
from assay.engines.concepts.config import TIMED, WITH_RATE, PretrainConfig
from assay.engines.concepts.corpus import HUB
from assay.engines.concepts.engine import GUESSED
from assay.engines.concepts.labels import METRICS
from assay.engines.concepts.names import architecture, concept_losses
from assay.engines.concepts.tasks import TASKS

NAMES = {
    "accuracy": "Accuracy",
    "f1": "F1",
    "mcc": "Matthews correlation",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
CHIEF = {
    "test/loss_nats": "Mean cross-entropy of the hidden tokens of held-out texts.",
    "test/unigram_nats": GUESSED["test/unigram_nats"].says,
    "test/accuracy": "Share of the hidden tokens that are the likeliest.",
    "test/majority_accuracy": GUESSED["test/majority_accuracy"].says,
    "test/input_dependence": CONCEPTS["input_dependence"].says,
    "test/input_energy": CONCEPTS["input_energy"].says,
    "test/rank_mean": CONCEPTS["rank_mean"].says,
}
"""Measures of the pretraining itself that the card shows, and what they are."""
WHAT = {
    "concepts": "A text as {0.slots} concept vectors of {0.hidden} numbers",
    "bert": "A BERT of {1} of {0.hidden} numbers, to compare with encoders that have concepts",
}
NEEDS = {
    "concepts": "\nimport assay.engines.concepts.models  # makes the model known to the Auto classes\n",
    "bert": "",
}
INSTALL = {
    "concepts": """
The model's classes are those of Assay, a laboratory that is installed from its sources. In a copy of them, on a
machine with Python 3.11, make and gcc, `make setup` sets up .venv with all that is needed:

```sh
make setup
.venv/bin/python load.py
```

As load.py:
""",
    "bert": "",
}
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
"""The form of the hub's identifiers. Their list is the hub's alone, which looks into it when a card is uploaded."""
TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ what }}; pretrained on {{ corpus }} by the objective {{ objective }}.
{{ install }}
```python
from transformers import AutoModel, AutoTokenizer
{{ needs }}
tokenizer = AutoTokenizer.from_pretrained("{{ place }}")
encoder = AutoModel.from_pretrained("{{ place }}")
```

| setting | value |
| --- | --- |
{{ settings }}

| measure | value | what it is |
| --- | --- | --- |
{{ measures }}

Measured by one run with one seed; studies with several seeds are in the log of the project that made it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A run whose model is stored.

    Attributes:
        config: Of the run.
        final: Its final values.
        model: The stored model's own settings, its config.json.
        seeds: By role.
        data: What the run read → sha256.
    """

    config: PretrainConfig
    final: Mapping[str, float]
    model: Mapping[str, Any]
    seeds: Mapping[str, int]
    data: Mapping[str, str]

    @property
    def layers(self) -> int:
        """That the model has; a plain one's are not those of `config`."""
        return int(self.model["num_hidden_layers"])


def model_card(run: Trained, *, place: str, licence: str | None = None) -> ModelCard:
    """The card: how to load the model, its settings, what was measured, and results in the hub's form.

    Args:
        run: That trained it.
        place: Repository or folder from which it is loaded.
        licence: Of the weights, as the hub names it; None leaves it to the owner.

    Raises:
        ConfigError: The licence is no identifier.
    """
    if licence is not None and not LICENCE.fullmatch(licence):
        raise ConfigError(
            "A licence must be an identifier of the hub, small letters, digits, dots, + and - such as apache-2.0 or "
            f"cc-by-4.0; got {licence!r}. The list is at https://huggingface.co/docs/hub/repositories-licenses; other "
            "ones are named 'other'."
        )
    config, final = run.config, run.final
    told = _settings(run)
    says = {name: metric.says for name, metric in METRICS.items()} | CHIEF
    measured = sorted((name, value) for name, value in final.items() if name in says)
    rows = [f"| {name} | {value:.4g} | {says[name]} |" for name, value in measured]
    name = place.rpartition("/")[2]
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        tags=["concept-encoder" if config.architecture == "concepts" else "bert", "assay"],
        datasets=[config.corpus.removeprefix(HUB).partition(":")[0]]
        if config.corpus.startswith(HUB)
        else None,
        model_name=name,
        eval_results=_results(final) or None,
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        name=name,
        place=place,
        what=WHAT[config.architecture].format(
            config, f"{run.layers} layer{'' if run.layers == 1 else 's'}"
        ),
        install=INSTALL[config.architecture],
        needs=NEEDS[config.architecture],
        corpus=_public(config.corpus),
        objective=config.objective,
        settings="\n".join(f"| {key} | {value} |" for key, value in told.items()),
        measures="\n".join(rows) or "| – | – | – |",
    )


def _settings(run: Trained) -> dict[str, str]:
    """What a reader needs to train it again, or to tell it from another."""
    config = run.config
    tokenizer = _public(config.tokenizer) if config.tokenizer else "trained on the corpus"
    found = {
        "architecture": architecture(config, run.layers),
        "tokenizer": f"{tokenizer}, {int(run.model['vocab_size']):,} tokens",
        "objective": _objective(config),
        "concept losses": concept_losses(config),
        "steps × texts × tokens": f"{config.steps} × {config.batch} × {config.seq_len}",
        "learning rate": f"{config.lr:g} ({config.schedule}, warm-up {config.warmup})",
        "seeds": ", ".join(f"{role} {seed}" for role, seed in sorted(run.seeds.items())),
    }
    if (parameters := run.final.get("model/parameters")) is not None:
        found["parameters"] = f"{parameters:,.0f}, those of decoder and head too"
    if digest := run.data.get(f"corpus {config.corpus}"):
        found["corpus, sha256"] = digest
    return found


def _objective(config: PretrainConfig) -> str:
    """What is hidden and what rebuilds it, by the settings that this objective heeds."""
    found: list[str] = [config.objective]
    if config.objective in WITH_RATE:
        found.append(f"mask_rate {config.mask_rate:g}")
    if config.objective in TIMED:
        found.append(f"t_min {config.t_min:g}, time_weight {config.time_weight}")
    if config.architecture == "concepts":
        found.append(f"decoder {config.decoder}")
    if config.label_smoothing:
        found.append(f"label_smoothing {config.label_smoothing:g}")
    return ", ".join(found)


def _public(corpus: str) -> str:
    """A corpus as others may read it: of a path the last part, since the folders are the owner's own."""
    return corpus if corpus.startswith(HUB) else Path(corpus).name


def _results(final: Mapping[str, float]) -> list[EvalResult]:
    """Fine-tuned values on labelled tasks, in the form of a model index."""
    found = []
    for task in TASKS.values():
        if not task.reported:
            # Of a part that we drew ourselves: nobody else's number compares with it.
            continue
        for metric in task.metrics:
            name = f"{task.name}/{metric}"
            if name in final:
                repository, configuration, _ = task.hub
                found.append(
                    EvalResult(
                        task_type="text-classification",
                        dataset_type=repository,
                        dataset_name=task.name,
                        dataset_config=configuration,
                        dataset_split=task.reported[""],
                        metric_type=metric,
                        metric_name=NAMES[metric],
                        metric_value=round(final[name], 6),
                    )
                )
    return found


def upload(folder: Path, repository: str, *, private: bool, api: HfApi | None = None) -> str:
    """Put a stored model with its card on the hub; its address.

    Args:
        folder: With model, tokenizer and README.md.
        repository: OWNER/NAME.
        private: Nobody else sees it.
        api: Of the hub; by default with the user's own login.

    Raises:
        ConfigError: The folder has no model or no card, or the hub refuses.
    """
    for name in ("model.safetensors", "config.json", "README.md"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"A model to upload must have {name}; {folder} has none. Give OUT/model of `pretrain`."
            )
    hub = api or HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(folder_path=folder, repo_id=repository)
    except Exception as error:
        raise ConfigError(
            f"The hub did not take {repository!r}: {type(error).__name__}: {error}. Log in (`hf auth login`), and look "
            "whether this machine may reach the hub."
        ) from error
    return f"{hub.endpoint}/{repository}"
