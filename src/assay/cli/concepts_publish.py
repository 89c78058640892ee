"""`assay concepts registry`, `unpack` and `publish`: all runs in one table, and one model with its card."""

import importlib
import json as plain_json
import math
import re
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile, ZipFile

import msgspec
from cyclopts import Parameter

from assay.cli.common import Output, headed_table, ledger, open_index, print_json
from assay.cli.local_files import LocalContext, finals, read_json
from assay.core.artifacts import ArtifactStore
from assay.core.config import build
from assay.core.errors import ConfigError, StoreError
from assay.core.ledger import invalidations
from assay.core.read import IndexedRun
from assay.core.settings import Settings
from assay.engines.concepts.config import PretrainConfig
from assay.engines.concepts.names import architecture, concept_losses, run_name
from assay.engines.concepts.tasks import TASKS

SCORES = tuple(f"{task.name}/{metric}" for task in TASKS.values() for metric in task.metrics)
"""Of the fine-tuned model; shown where they were measured, with what needs no fine-tuning."""
ZERO_SHOT = "zero_shot_spearman"
NONE = "–"
DATA = "data."
"""Before the names of facts that are fingerprints of what a run read."""


def registry(
    study: str | None = None,
    *,
    json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    markdown: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """All pretraining runs of the lab, as the source's hand-kept registry had them.

    Every number is that of the run named beside it; means, spreads and verdicts are in `assay table` and
    `assay verdict`.

    Args:
        study: Of this study alone.
        json: Plain data.
        markdown: The same table for a page.
    """
    settings = Settings.from_environment()
    with open_index(settings, study) as index:
        runs = [r for r in index.runs(study) if (r.engine, r.task) == ("concepts", "pretrain")]
        rows = [
            _row(
                run,
                _finals(index.run_values(run.id)),
                index.facts(run.id),
                settings.runs_dir / run.path,
            )
            for run in runs
        ]
    struck = invalidations(ledger(settings))
    for run, row in zip(runs, rows, strict=True):
        row["status"] = "invalidated" if run.id in struck else run.status
        row["conclusion"] = _conclusion(settings.root / "notes" / f"{run.study}.md")
    if json:
        print_json(rows)
        return
    if not rows:
        raise ConfigError(
            f"There is no pretraining run {f'of a study {study!r}' if study else 'here'}. `assay ls` lists studies that "
            "have runs; run one of studies/concepts: assay run FILE."
        )
    if markdown:
        heads = [head.replace("_", " ") for head in rows[0]]
        cells = [[NONE if v is None else str(v) for v in row.values()] for row in rows]
        for line in (heads, ["---"] * len(heads), *cells):
            print(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |")
        return
    table = headed_table(*(head.replace("_", " ") for head in rows[0]))
    for row in rows:
        table.add_row(*(NONE if value is None else str(value) for value in row.values()))
    Output().print(table)


def _finals(rows: Sequence[Any]) -> dict[str, float]:
    return {row.name: row.value for row in rows if row.value is not None}


def _conclusion(note: Path) -> str | None:
    """The first sentence of a study's note, without the marks that bind its numbers."""
    try:
        text = re.sub(r"<!--.*?-->", "", note.read_text("utf-8"), flags=re.DOTALL)
    except OSError:
        return None
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0] or None


def _plain_layers(folder: Path) -> int | None:
    """Of the plain encoder that a run stored; None if it has stored none, or it is not here."""
    path = ArtifactStore(folder).path("model.zip")
    if path is None:
        return None
    try:
        with ZipFile(path) as archive:
            return int(plain_json.loads(archive.read("config.json"))["num_hidden_layers"])
    except (OSError, BadZipFile, KeyError, ValueError):
        return None


def _row(
    run: IndexedRun, final: dict[str, float], facts: dict[str, object], folder: Path
) -> dict[str, Any]:
    config = msgspec.convert(run.config, PretrainConfig)
    layers = _plain_layers(folder) if config.architecture == "bert" else None
    scores = [f"{name} {final[name]:.3f}" for name in SCORES if name in final]
    scores += [f"{n} {v:.3f}" for n, v in final.items() if n.endswith(f"/{ZERO_SHOT}")]
    read = config.steps * config.batch
    texts = final.get("train/blocks") or config.train_blocks
    shown = {
        "task_loss": "test/loss_nats",
        "rank_mean": "test/rank_mean",
        "input_dependence": "test/input_dependence",
        "s_per_step": "speed/seconds_per_step",
    }
    return {
        "date": run.created_at[:10],
        "run": run_name(config, datetime.fromisoformat(run.created_at), layers),
        "id": run.id,
        "study": f"{run.study}/{run.arm}/{run.cell_label}/{run.seed_label}",
        "architecture": architecture(config, layers),
        "objective": config.objective,
        "data": config.corpus,
        "machine": facts.get("machine.cpu") or NONE,
        "texts": read,
        "epochs": f"{read / texts:.3g}" if texts else None,
        "concept_losses": concept_losses(config),
        **{
            head: None if name not in final else f"{final[name]:.4g}"
            for head, name in shown.items()
        },
        "labelled_tasks": ", ".join(scores) or None,
        "git": run.code,
        "status": run.status,
    }


def unpack(run: str, out: Path) -> None:
    """Write a study's run as the folder that `pretrain` writes, for analyze, evaluate and publish.

    Args:
        run: Id of the run; the first letters are enough if only one run has them.
        out: Folder for it.
    """
    settings = Settings.from_environment()
    with open_index(settings) as index:
        found = index.find(run)
        rows, facts = index.run_values(found.id), index.facts(found.id)
    if (found.engine, found.task) != ("concepts", "pretrain"):
        raise StoreError(
            f"A run must be of a pretraining; {found.id} is of {found.engine}, {found.task}. `assay concepts registry` "
            "lists those."
        )
    store = ArtifactStore(settings.runs_dir / found.path)
    if "model.zip" not in store.current():
        raise StoreError(
            f"A run must have stored its model, as it does at its end; {found.id} is {found.status}. Let it go on: "
            f"assay run {found.study}."
        )
    data = {name.removeprefix(DATA): v for name, v in facts.items() if name.startswith(DATA)}
    told = {"config": found.config, "seeds": found.seeds, "data": data}
    context = LocalContext(out, told=told, seeds=found.seeds, quiet=True)
    # Heavy; what is wrong with run and folder is told before.
    from assay.engines.concepts.pretrain import unpacked

    unpacked(BytesIO(store.read("model.zip")), out / "model")
    context.final = _finals([row for row in rows if row.source == "summary"])
    context.spent(**found.spent)
    Output().print(f"wrote {out}: {found.study}, {found.arm}, seed {found.seed_label}")
    if found.id in invalidations(ledger(settings)):
        Output(stderr=True).print(f"{found.id} was invalidated: `assay show {found.id}` says why")


def publish(
    out: Path,
    repository: str,
    *,
    licence: Annotated[str | None, Parameter(name="--license")] = None,
    private: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a stored model's card, and put both on the hub.

    The card says how to load the model, its settings, and what was measured, in the hub's form too.

    Args:
        out: Folder of `assay concepts pretrain`.
        repository: OWNER/NAME on the hub; you must be logged in (`hf auth login`).
        licence: Of the weights, as the hub names it, such as apache-2.0; it depends on the texts too.
        private: Nobody else sees it.
        dry_run: Write the card (OUT/model/README.md), and upload nothing.
    """
    if repository.count("/") != 1:
        raise ConfigError(f"A repository is named OWNER/NAME; got {repository!r}.")
    told, final = read_json(out / "config.json"), finals(out)
    config = build(PretrainConfig, told.get("config", {}), where=str(out / "config.json"))
    if not math.isfinite(final.get("test/loss_nats", math.nan)):
        raise StoreError(
            f"{out} must hold a model that learned; its loss on other texts is no number: the training diverged. "
            "Train it anew with a lower lr."
        )
    cards = importlib.import_module("assay.engines.concepts.card")
    path = out / "model" / "README.md"
    run = cards.Trained(
        config=config,
        final=final,
        model=read_json(out / "model" / "config.json"),
        seeds=told.get("seeds", {}),
        data=told.get("data", {}),
    )
    cards.model_card(run, place=repository, licence=licence).save(path)
    console = Output()
    console.print(f"wrote {path}")
    if not dry_run:
        console.print(cards.upload(out / "model", repository, private=private))
