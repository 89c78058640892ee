"""One study's section of the log, as Markdown: a pure function of the index and the ledger."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from assay.core.claims import Judgement
from assay.core.config import canonical, flatten
from assay.core.contract import summarise
from assay.core.evidence import Selection
from assay.core.evidence import number as evidence_number
from assay.core.index import Index
from assay.core.ledger import Event
from assay.core.read import IndexedRun
from assay.core.render import interval, mean_std, number, row_markdown, table_markdown
from assay.core.study import Study
from assay.core.table import Table, build_table, default_metrics
from assay.core.verdict import StudyVerdict, judge_study


def study_section(
    result: StudyVerdict, index: Index, events: Sequence[Event], figures: Sequence[str], note: str
) -> str:
    """Heading with verdict, question, setup, claims, results, contract, runs, cost, commands.

    Args:
        result: The study, its runs and verdicts.
        index: For provenance, and for what stood before an invalidation.
        events: The ledger, of which this study's events are told.
        figures: Paths of its figures, relative to the log.
        note: Prose of a person, included as it is.
    """
    study, selection = result.study, result.selection
    metrics = default_metrics(study, selection)
    table = build_table(study, selection, metrics)
    parts = [
        f"## {study.id}: {result.headline}\n",
        f"{study.table.question}\n",
        *([f"{note}\n"] if note else []),
        "### Claims\n",
        _claims(result.judgements),
        "### Results\n",
        table_markdown(_without_invalid(table), seeds=True),
        *_struck(result, table, index, events),
        *(f"![{study.id}: {path}]({path})\n" for path in figures),
        "### Setup\n",
        _setup(study, selection),
        "### Contract\n",
        "\n".join(f"- {line}" for line in summarise(result.contract)) + "\n",
        "### Runs\n",
        _runs(study, selection, index),
        *_events(study, events),
        "### Commands\n",
        _commands(study),
    ]
    return "\n".join(parts)


def _claims(judgements: Iterable[Judgement]) -> str:
    lines = []
    for j in judgements:
        lines.append(f"- **{j.verdict}** `{j.name}`: {j.sentence}")
        if j.estimate is not None:
            limits = interval(j.low, j.high)
            how = f", {j.how}" if j.how else ""
            lines.append(
                f"  Estimate {number(j.estimate)}, {j.confidence:.0%} interval {limits}, n {j.n}{how}."
            )
        adjusted = "" if j.p_adjusted is None else f" Holm-adjusted p {number(j.p_adjusted)}."
        lines.append(f"  {j.why}{adjusted}")
        lines.append(f"  Criterion: `{j.criterion}`")
    return "\n".join(lines or ["No claims."]) + "\n"


def _setup(study: Study, selection: Selection) -> str:
    configs: dict[str, list[dict[str, Any]]] = {}
    for run in selection.planned:
        configs.setdefault(run.arm, []).append(flatten(run.config))
    everything = [config for arm in configs.values() for config in arm]
    keys = list(dict.fromkeys(key for config in everything for key in config))
    constant = {
        k: everything[0].get(k) for k in keys if len({_text(c.get(k)) for c in everything}) == 1
    }
    what = f"engine `{study.table.engine}`" if study.table.engine else "command"
    lines = [
        f"- Computed by: {what}; factor: {', '.join(f'`{f}`' for f in study.factor) or 'none'}"
    ]
    for arm, settings in study.arms.items():
        listed = ", ".join(f"`{k} = {_text(v)}`" for k, v in flatten(settings.settings).items())
        cmd = f" `{settings.cmd}`" if settings.cmd else ""
        base = " (baseline)" if arm == study.baseline and len(study.arms) > 1 else ""
        lines.append(f"- Arm **{arm}**{base}: {listed}{cmd}")
    for name, values in study.grid.items():
        lines.append(f"- Grid `{name}`: {', '.join(map(_text, values))}")
    seeds = ", ".join(f"{r} = {_seeds(v)}" for r, v in study.seeds.items())
    lines.append(f"- Seeds: {seeds}")
    budget = ", ".join(f"{k} = {number(v)}" for k, v in study.table.budget.items())
    lines.append(f"- Budget: {budget or 'not declared'}")
    listed = ", ".join(f"`{k} = {_text(v)}`" for k, v in constant.items())
    lines.append(f"- Constant: {listed or 'nothing'}")
    return "\n".join(lines) + "\n"


def _seeds(value: tuple[int, ...] | str) -> str:
    return f"the seed of {value}" if isinstance(value, str) else " ".join(map(str, value))


def _text(value: object) -> str:
    return value if isinstance(value, str) else canonical(value)


def _without_invalid(table: Table) -> Table:
    """Invalidated runs are told below the table, with their values."""
    return replace(table, notes=tuple(n for n in table.notes if ": invalidated " not in n))


def _struck(
    result: StudyVerdict, table: Table, index: Index, events: Sequence[Event]
) -> Iterator[str]:
    """What was invalidated: the runs with their values struck, and what changed with them."""
    selection = result.selection
    if not selection.invalid:
        return
    lines = []
    for run, event in sorted(selection.invalid, key=lambda pair: pair[0].key):
        values = selection.values.get(run.id, {})
        shown = ", ".join(
            f"`{m}` ~~{number(evidence_number(values[m]))}~~" for m in table.metrics if m in values
        )
        place = f"{run.arm}, {run.cell_label}, seed {run.seed_label}"
        lines.append(
            f"- {run.id} ({place}): {shown or 'no values'}. Since {event.at[:10]}: "
            f"{event.body['because']}"
        )
    before = judge_study(
        result.study, index, [e for e in events if e.kind not in ("invalidate", "restore")]
    )
    old_table = build_table(result.study, before.selection, list(table.metrics))
    for old, new in zip(old_table.rows, table.rows, strict=True):
        if mean_std(old) != mean_std(new):
            where = ", ".join([old.arm, *(f"{k} = {_text(v)}" for k, v in old.cell.items())])
            lines.append(f"- {where}: `{old.metric}` ~~{mean_std(old)}~~ → {mean_std(new)}")
    for was, now in zip(before.judgements, result.judgements, strict=True):
        if was.verdict != now.verdict:
            lines.append(f"- Claim `{now.name}`: ~~{was.verdict}~~ → {now.verdict}")
    yield "### Invalidated\n"
    yield "\n".join(lines) + "\n"


def _runs(study: Study, selection: Selection, index: Index) -> str:
    runs = sorted(selection.counting.items())
    heads = ["run", "arm", "cell", "seed", "phase", "status", "attempts", "process seconds", "code"]
    lines = [row_markdown(heads), row_markdown(["---"] * len(heads))]
    lines += [row_markdown(_run_cells(place, run)) for place, run in runs]
    lines += ["", *(f"- {line}" for line in _remarks(runs, selection))]
    lines += [
        f"- Not readable, and counted nowhere: `{path}`: {_reason(reason, index)}"
        for path, reason in index.broken(study.id)
    ]
    lines.append(f"- {_cost([run for _, run in runs])}")
    lines += [f"- Machine: {machine}" for machine in _machines(study, selection, index)]
    return "\n".join(lines) + "\n"


def _reason(reason: str, index: Index) -> str:
    """Without the place of the project on this machine, which would make two logs differ."""
    return reason.replace(f"{index.runs_dir.parent}/", "")


Place: TypeAlias = tuple[str, str, str]


def _run_cells(place: Place, run: IndexedRun) -> list[str]:
    seconds = number(run.spent.get("process_s"))
    return [run.id, *place, run.phase, run.status, str(run.attempts), seconds,
            run.code or "no commit"]  # fmt: skip


def _remarks(runs: Sequence[tuple[Place, IndexedRun]], selection: Selection) -> Iterator[str]:
    for (arm, cell, seed), run in runs:
        where = f"{arm}, {cell}, seed {seed}"
        if run.error:
            yield f"Failed: {where}: `{run.error.strip().splitlines()[-1][:200]}`"
        for message in [*run.events, *run.problems]:
            yield f"{where}: {message}"
        if run.torn_lines:
            yield f"{where}: {run.torn_lines} line(s) were cut off by a kill, and skipped"
    for run in selection.superseded:
        yield f"Run again: {run.id} ({run.arm}, seed {run.seed_label}) is of an earlier generation"


def _cost(runs: Sequence[IndexedRun]) -> str:
    seconds = sum(run.spent.get("process_s", 0.0) for run in runs)
    spent: dict[str, float] = {}
    for run in runs:
        for name, value in run.spent.items():
            if not name.endswith("_s"):
                spent[name] = spent.get(name, 0.0) + value
    listed = "".join(f", {name} {number(value)}" for name, value in spent.items())
    return f"Cost of the runs that count: {seconds:,.0f} process seconds{listed}"


def _machines(study: Study, selection: Selection, index: Index) -> list[str]:
    found = set()
    known = index.study_facts(study.id)
    for run in selection.counting.values():
        facts = known.get(run.id, {})
        found.add(
            f"{facts.get('machine.cpu')}, {facts.get('machine.cores')} cores, "
            f"{facts.get('machine.memory_gib')} GiB, {facts.get('machine.os')}; device "
            f"{facts.get('device')}, {facts.get('threads')} thread(s) a process; Python "
            f"{facts.get('python.version')}"
            + "".join(
                f", {key.removeprefix('packages.')} {value}"
                for key, value in sorted(facts.items())
                if key.startswith("packages.")
            )
        )
    return sorted(found)


def _events(study: Study, events: Sequence[Event]) -> list[str]:
    mine = [event for event in events if event.study == study.id]
    if not mine:
        return []
    lines = [f"- {event.at[:10]} {event.kind}: {_told(event)}" for event in mine]
    return ["### Ledger\n", "\n".join(lines) + "\n"]


def _told(event: Event) -> str:
    body = event.body
    if event.kind == "freeze":
        return f"version {body['version']} at commit {str(body['commit'])[:9]}"
    told = " because ".join(str(body[key]) for key in ("target", "because") if key in body)
    return told or str(body.get("text", ""))


def _commands(study: Study) -> str:
    path = study.path
    name = (
        "/".join(path.parts[path.parts.index("studies") :])
        if "studies" in path.parts
        else path.name
    )
    frozen = any(claim.phase == "frozen" for claim in study.claims.values())
    lines = [
        *([f"assay freeze {study.id}"] if frozen else []),
        f"assay run {name}",
        f"assay table {study.id} --seeds",
        f"assay verdict {study.id}",
        "assay log",
    ]
    return "```\n" + "\n".join(lines) + "\n```\n"
