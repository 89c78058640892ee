"""One study's section of the log, as Markdown: a pure function of the index and the ledger."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from assay.core.audit import CHECKS
from assay.core.bound import unbound_numbers
from assay.core.claims import Judgement
from assay.core.config import canonical, flatten
from assay.core.contract import summarise
from assay.core.evidence import Selection
from assay.core.evidence import number as evidence_number
from assay.core.freeze import changes
from assay.core.index import Index
from assay.core.ledger import Event, revisions
from assay.core.read import IndexedRun
from assay.core.render import (
    interval,
    mean_std,
    number,
    reasons,
    row_markdown,
    table_markdown,
)
from assay.core.replication import reported_markdown
from assay.core.study import Study
from assay.core.table import Table, build_table, default_metrics
from assay.core.verdict import StudyVerdict, judge_study

Clean = Callable[[str], str]
PATH = re.compile(r"(?<![\w/:.~-])(?:/[^\s/'\"`:;,()<>|]+)+/([^\s/'\"`:;,()<>|]+)")
"""An absolute path of two parts or more, and its last part."""


def study_section(
    result: StudyVerdict,
    index: Index,
    events: Sequence[Event],
    figures: Mapping[str, str],
    note: str,
    home: str = "",
) -> str:
    """Heading with verdict, question, claims, results, setup, contract, runs, cost, commands.

    Args:
        result: The study, its runs and verdicts.
        index: For provenance, and for what stood before an invalidation.
        events: The ledger, of which this study's events are told.
        figures: Paths of its figures, relative to the log, with their digests.
        note: Prose of a person, included as it is; below it stands how much of it is unbound.
        home: The home folder, which no message may tell; "" if there is none.
    """
    study, selection = result.study, result.selection
    clean = _cleaner(index, home)
    tidy = partial(_message, study=study, clean=clean)
    metrics = default_metrics(study, selection)
    table = build_table(study, selection, metrics)
    parts = [
        f"## {study.id}: {result.headline}\n",
        f"{study.table.question}\n",
        *note_parts(note),
        "### Claims\n",
        _claims(study.id, result.judgements, revisions(events, study.id), clean),
        "### Results\n",
        table_markdown(_without_invalid(table), seeds=True),
        *_struck(result, table, index, events, tidy),
        *reported_markdown(study, selection),
        *(f"![{study.id}: {p}]({p})\n\n`{p}`: sha256 `{d}`\n" for p, d in figures.items()),
        "### Setup\n",
        _setup(study, selection),
        "### Contract\n",
        "\n".join(f"- {clean(line)}" for line in summarise(result.contract)) + "\n",
        *_audits(result, clean),
        "### Runs\n",
        _runs(study, selection, index, table.metrics, tidy),
        *_events(study, events),
        "### Commands\n",
        _commands(study),
    ]
    return "\n".join(parts)


def _cleaner(index: Index, home: str) -> Clean:
    """Takes the places of the project and of the home folder out of a text."""
    places = [(str(index.runs_dir.parent), ""), (home.rstrip("/"), "~")]

    def clean(text: str) -> str:
        for place, instead in places:
            if len(place) > 1:
                text = text.replace(f"{place}/", f"{instead}/" if instead else "")
                text = re.sub(rf"{re.escape(place)}(?![\w.-])", instead or ".", text)
        return text

    return clean


def _message(text: str, study: Study, clean: Clean) -> str:
    """A message or an error on one line, without paths of the machine where the run was made.

    That machine's folders are not known here, so of any absolute path the last part stays; of
    one in a run directory, all below `runs/`.
    """
    line = " ".join(text.split()).replace("<!--", "<! --")
    line = re.sub(
        rf"(?:/[^\s'\"`:;,()<>|]*)?/runs/{re.escape(study.id)}/", f"runs/{study.id}/", line
    )
    return PATH.sub(r"…/\1", clean(line))


def _reason(event: Event, clean: Clean) -> str:
    """Why an event was recorded, on one line, which is no marker of the log."""
    return clean(" ".join(str(event.body["because"]).split())).replace("<!--", "<! --")


def note_parts(note: str) -> Iterator[str]:
    """A person's prose as a section shows it, and how many of its numbers are unbound."""
    if not note:
        return
    yield f"{note}\n"
    if unbound := len(unbound_numbers(note)):
        yield f"{unbound} number{'s' if unbound > 1 else ''} above {'are' if unbound > 1 else 'is'} not bound to runs.\n"


def _claims(
    study: str, judgements: Iterable[Judgement], revised: Sequence[Event], clean: Clean
) -> str:
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
        lines.append(f"  {clean(j.why)}{adjusted}")
        lines += [f"  Note: {clean(reason)}." for reason in reasons(j)]
        lines.append(f"  Criterion: `{j.criterion}`")
        for event in revised:
            for key, words, other in (("claim", "Revised by", "by"), ("by", "Revises", "claim")):
                if event.body[key] == f"{study}/{j.name}":
                    because = _reason(event, clean)
                    lines.append(f"  {words} `{event.body[other]}` ({event.at[:10]}): {because}")
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
        *_scale(study),
        f"- Computed by: {what}; factor: {', '.join(f'`{f}`' for f in study.factor) or 'none'}",
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


def _scale(study: Study) -> Iterator[str]:
    """At which scale the section is, and which others its file has."""
    if study.at_scale:
        others = {name: says for name, says in study.scales.items() if name != study.scale}
        listed = ", ".join(f"`{name}` ({says})" for name, says in others.items())
        more = f"; further scales in its file: {listed}" if listed else ""
        yield f"- {study.at_scale[:1].upper()}{study.at_scale[1:]}{more}"


def _seeds(value: tuple[int, ...] | str) -> str:
    return f"the seed of {value}" if isinstance(value, str) else " ".join(map(str, value))


def _text(value: object) -> str:
    return value if isinstance(value, str) else canonical(value)


def _without_invalid(table: Table) -> Table:
    """Invalidated runs are told below the table, with their values."""
    return replace(table, notes=tuple(n for n in table.notes if ": invalidated " not in n))


def _struck(
    result: StudyVerdict, table: Table, index: Index, events: Sequence[Event], tidy: Clean
) -> Iterator[str]:
    """What was invalidated: the runs with their values struck, and what changed with them."""
    selection = result.selection
    if not selection.invalid:
        return
    lines = []
    for run, event in sorted(selection.invalid, key=lambda pair: pair[0].key):
        lines.append(
            f"- {_crossed_out(run, selection, table.metrics, tidy)}. Since {event.at[:10]}: "
            f"{_reason(event, tidy)}"
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


def _crossed_out(run: IndexedRun, selection: Selection, metrics: Sequence[str], tidy: Clean) -> str:
    """A run that does not count, with the values that it had and the attempts that failed."""
    values = selection.values.get(run.id, {})
    shown = ", ".join(
        f"`{m}` ~~{number(evidence_number(values[m]))}~~" for m in metrics if m in values
    )
    place = f"{run.arm}, {run.cell_label}, seed {run.seed_label}"
    failures = "".join(f"; `{tidy(failure)}`" for failure in run.failures)
    return f"{run.id} ({place}): {shown or 'no values'}{failures}"


def _runs(
    study: Study, selection: Selection, index: Index, metrics: Sequence[str], tidy: Clean
) -> str:
    runs = sorted(selection.counting.items())
    facts = index.study_facts(study.id)
    heads = ["run", "arm", "cell", "seed", "phase", "status", "attempts", "process seconds", "code"]
    lines = [row_markdown(heads), row_markdown(["---"] * len(heads))]
    for place, run in runs:
        state = [run.phase, run.status, str(run.attempts), number(run.process_s)]
        lines.append(row_markdown([run.id, *place, *state, _code(facts.get(run.id, {}))]))
    lines += ["", *(f"- {line}" for line in _remarks(runs, tidy))]
    lines += [
        f"- Run again: {_crossed_out(run, selection, metrics, tidy)}"
        for run in selection.superseded
    ]
    lines += [
        f"- Not readable, and counted nowhere: `{path}`: {tidy(reason)}"
        for path, reason in index.broken(study.id)
    ]
    lines.append(f"- {_cost([run for _, run in runs])}")
    lines += [f"- Machine: {machine}" for machine in _machines(study, selection, facts)]
    return "\n".join(lines) + "\n"


def _audits(result: StudyVerdict, clean: Clean) -> Iterator[str]:
    """What the audits found; a sentence too where they found nothing, since they did look."""
    if not result.selection.counting:
        return
    yield "### Audit\n"
    found = [f"- {clean(finding.message)}" for finding in result.audits]
    yield "\n".join(found or [f"- Nothing found by {len(CHECKS)} checks."]) + "\n"


Place: TypeAlias = tuple[str, str, str]


def _code(facts: Mapping[str, Any]) -> str:
    """Commit and digest of what was changed since; without a repository the source's digest."""
    commit, source = facts.get("code.commit"), facts.get("code.source_sha256")
    if not commit:
        return f"no commit, source {_first(source, 9)}" if source else "no commit"
    if not facts.get("code.dirty"):
        return _first(commit, 9)
    return f"{_first(commit, 9)}+{_first(facts.get('code.diff_sha256') or '', 6)}"


def _first(value: object, length: int) -> str:
    """The beginning of a digest; of both, where it changed between attempts."""
    parts = str(value).split(" → ")
    return " → ".join("unchanged" if part == "None" else part[:length] for part in parts)


def _remarks(runs: Sequence[tuple[Place, IndexedRun]], tidy: Clean) -> Iterator[str]:
    for (arm, cell, seed), run in runs:
        where = f"{arm}, {cell}, seed {seed}"
        yield from (f"Failed: {where}: `{tidy(failure)}`" for failure in run.failures)
        yield from (f"{where}: {tidy(message)}" for message in [*run.events, *run.problems])
        if run.torn_lines:
            yield f"{where}: {run.torn_lines} line(s) were cut off by a kill, and skipped"


def _cost(runs: Sequence[IndexedRun]) -> str:
    seconds = sum(run.process_s for run in runs)
    spent: dict[str, float] = {}
    for run in runs:
        for name, value in run.spent.items():
            if not name.endswith("_s"):
                spent[name] = spent.get(name, 0.0) + value
    listed = "".join(f", {name} {number(value)}" for name, value in spent.items())
    shown = number(round(seconds) if seconds >= 10 else seconds)
    return f"Cost of the runs that count: {shown} process seconds{listed}"


def _machines(
    study: Study, selection: Selection, known: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    found = set()
    for run in selection.counting.values():
        facts = known.get(run.id, {})
        found.add(
            f"{facts.get('machine.cpu')}, {facts.get('machine.cores')} cores, "
            f"{facts.get('machine.memory_gib')} GiB, {facts.get('machine.os')}; device "
            f"{facts.get('device')}, {facts.get('threads')} thread(s) a process; Python "
            f"{facts.get('python.version')}{_packages(study, facts)}"
        )
    return sorted(found)


def _packages(study: Study, facts: Mapping[str, Any]) -> str:
    """Those that decide; where all of them do, as for a command, only their number is told."""
    versions = {
        k.removeprefix("packages."): facts[k] for k in sorted(facts) if k[:9] == "packages."
    }
    if study.table.engine is None or not any(key.startswith("installed.") for key in facts):
        return f", {len(versions)} package(s)"
    return "".join(f", {name} {version or 'missing'}" for name, version in versions.items())


def _events(study: Study, events: Sequence[Event]) -> list[str]:
    linked = revisions(events, study.id)
    mine = [event for event in events if event.study == study.id or event in linked]
    if not mine:
        return []
    lines = []
    for event in mine:
        lines.append(f"- {event.at[:10]} {event.kind}: {_told(event)}")
        changed = changes(event, events) if event.kind == "freeze" else []
        # Indented by eight: code inside the item, whatever the lines hold.
        lines += ["", *(f"        {line}" for line in changed), ""] if changed else []
    return ["### Ledger\n", "\n".join(lines) + "\n"]


def _told(event: Event) -> str:
    body = {key: str(value).replace("<!--", "<! --") for key, value in event.body.items()}
    if event.kind == "freeze":
        return f"version {body['version']} at commit {body['commit'][:9]}"
    if event.kind == "baseline":
        return f"{body['name']}@{body['version']} is arm {body['arm']} because {body['because']}"
    if event.kind == "revise":
        return f"{body['claim']} by {body['by']} because {body['because']}"
    told = " because ".join(body[key] for key in ("target", "because") if key in body)
    return told or body.get("text", "")


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
        f"assay run {name}" + (f" --scale {study.scale}" if study.scale else ""),
        f"assay table {study.id} --seeds",
        f"assay verdict {study.id}",
        "assay log",
    ]
    return "```\n" + "\n".join(lines) + "\n```\n"
