"""A stored model's card, made from its settings and what was measured."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from assay.core.errors import ConfigError
from assay.engines.concepts.analysis_metrics import METRICS as CONCEPTS
from assay.engines.concepts.config import PretrainConfig
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
    "bert": "A BERT of {0.layers} layers of {0.hidden} numbers, to compare with encoders that have concepts",
}
NEEDS = {
    "concepts": "\nimport assay.engines.concepts.models  # makes the model known to the Auto classes\n",
    "bert": "",
}
TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ what }}; pretrained on {{ corpus }} by the objective {{ objective }}.

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


def model_card(
    config: PretrainConfig, final: Mapping[str, float], *, place: str, licence: str | None = None
) -> ModelCard:
    """The card: how to load the model, its settings, what was measured, and results in the hub's form.

    Args:
        config: Of the run.
        final: Its final values.
        place: Repository or folder from which it is loaded.
        licence: Of the weights, as the hub names it; None leaves it to the owner.
    """
    told = {
        "architecture": architecture(config),
        "concept losses": concept_losses(config),
        "steps × texts × tokens": f"{config.steps} × {config.batch} × {config.seq_len}",
        "learning rate": f"{config.lr:g} ({config.schedule}, warm-up {config.warmup})",
    }
    says = {name: metric.says for name, metric in METRICS.items()} | CHIEF
    measured = sorted((name, value) for name, value in final.items() if name in says)
    rows = [f"| {name} | {value:.4g} | {says[name]} |" for name, value in measured]
    name = place.rpartition("/")[2]
    data = ModelCardData(
        license=licence,
        library_name="transformers",
        tags=["concept-encoder" if config.architecture == "concepts" else "bert", "assay"],
        datasets=[config.corpus.removeprefix(HUB)] if config.corpus.startswith(HUB) else None,
        model_name=name,
        eval_results=_results(final) or None,
    )
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        name=name,
        place=place,
        what=WHAT[config.architecture].format(config),
        needs=NEEDS[config.architecture],
        corpus=_public(config.corpus),
        objective=config.objective,
        settings="\n".join(f"| {key} | {value} |" for key, value in told.items()),
        measures="\n".join(rows) or "| – | – | – |",
    )


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
