"""`assay verdict`, `freeze`, `invalidate`, `restore`: what a study comes to, and what is locked."""

import sys
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from assay.cli.common import Output, ledger, open_index, open_study, print_json, study_paths
from assay.core.audit import CHECKS
from assay.core.claims import Judgement
from assay.core.config import unknown_key
from assay.core.errors import AssayError, StoreError, StudyError
from assay.core.evidence import select
from assay.core.freeze import changes
from assay.core.freeze import freeze as freeze_study
from assay.core.ledger import invalidations, record, revised_by
from assay.core.render import interval, number, reasons
from assay.core.resampling import ENOUGH_POWER, MOST_SEEDS, Power
from assay.core.settings import Settings
from assay.core.strike import strike
from assay.core.verdict import StudyVerdict, judge_study

COLOURS = {"PASS": "green", "FAIL": "red", "INVALID": "red"}


def verdict(study: str, *, json: bool = False) -> None:
    """Judge a study's claims from evidence.

    Exit code: 0 all PASS, 1 a FAIL, 4 an INVALID (confounded or no-op arms), 5 INCONCLUSIVE or
    UNTESTED, 2 an error.

    Args:
        study: Study id or file.
        json: Plain data.
    """
    settings = Settings.from_environment()
    loaded = open_study(study, settings)
    with open_index(settings, loaded.id) as index:
        result = judge_study(loaded, index, ledger(settings))
    if json:
        print_json(
            {
                "study": loaded.id,
                "scale": loaded.at_scale or None,
                "judgements": [asdict(j) for j in result.judgements],
                "findings": [asdict(f) for f in result.findings],
            }
        )
    else:
        print_verdict(result)
    sys.exit(result.exit_code)


def print_verdict(result: StudyVerdict) -> None:
    """Claims and contract findings, as paragraphs."""
    console = Output()
    console.print(Text.assemble((result.study.id, "bold"), f": {result.headline}"))
    for judgement in result.judgements:
        console.print(_paragraph(judgement))
    told = " ".join(judgement.why for judgement in result.judgements)
    for finding in result.findings:
        if finding.message.rstrip(".") not in told:
            console.print(finding.message)


def _paragraph(judgement: Judgement) -> Text:
    colour = COLOURS.get(judgement.verdict, "yellow")
    lines = [f" {judgement.name}: {judgement.sentence}"]
    if judgement.estimate is not None:
        limits = interval(judgement.low, judgement.high)
        how = f", {judgement.how}" if judgement.how else ""
        lines.append(
            f"  estimate {number(judgement.estimate)}, {judgement.confidence:.0%} interval {limits}, "
            f"n {judgement.n}{how}"
        )
    lines.append(f"  {judgement.why}")
    lines += [f"  note: {reason}" for reason in reasons(judgement)]
    return Text.assemble((judgement.verdict, colour), "\n".join(lines))


def audit(study: str, *, json: bool = False) -> None:
    """Look for what the runs themselves show to be wrong: contract and audits, without verdicts.

    Exit code: 0 nothing found, 1 something that blocks no verdict, 4 something that does, 2 an error.

    Args:
        study: Study id or file.
        json: Plain data.
    """
    settings = Settings.from_environment()
    loaded = open_study(study, settings)
    with open_index(settings, loaded.id) as index:
        result = judge_study(loaded, index, ledger(settings))
    if json:
        print_json({"study": loaded.id, "findings": [asdict(f) for f in result.findings]})
    else:
        print_findings(result)
    blocking = any(finding.blocks for finding in result.findings)
    sys.exit(4 if blocking else 1 if result.findings else 0)


def print_findings(result: StudyVerdict) -> None:
    """Every finding as a paragraph, what it blocks first."""
    console = Output()
    if not result.selection.counting:
        struck = len(result.selection.invalid)
        why = (
            f"its {struck} run(s) are out of evidence; `assay restore` undoes that"
            if struck
            else "no runs to audit yet; `assay run` makes them"
        )
        console.print(f"{result.study.id}: {why}.")
        return
    for finding in result.findings:
        colour = "red" if finding.blocks else "yellow"
        console.print(Text.assemble((finding.weight, colour), "  ", finding.message))
    if not result.findings:
        console.print(
            f"{result.study.id}: the contract holds, and {len(CHECKS)} audits find nothing."
        )


def freeze(study: str) -> None:
    """Lock commit, file and criteria of a study, after an A/A check on its pilot seeds.

    Runs started while both still match are frozen and may support frozen claims.

    Args:
        study: Study id or file.
    """
    settings = Settings.from_environment()
    loaded = open_study(study, settings)
    events = ledger(settings)
    with open_index(settings, loaded.id) as index:
        selection = select(loaded, index, events)
    event, checks = freeze_study(loaded, selection, settings, events)
    console = Output()
    console.print(
        f"{loaded.id} is frozen as version {event.body['version']} at commit "
        f"{event.body['commit'][:9]}: {len(loaded.claims)} claim(s). Commit ledger/ to share it."
    )
    for check in checks:
        if check.deals:
            console.print(
                f"A/A check, {check.claim}: passes {check.passes} of {check.deals} times when the "
                "baseline is compared with itself."
            )
        else:
            console.print(
                f"A/A check, {check.claim}: not possible, too few pilot runs of the baseline."
            )
    for power in (Power(**body) for body in event.body["power"].values()):
        console.print(_power(power))
    for line in changes(event, [*events, event]):
        console.print(Text(line, "green" if line.startswith("+") else "red"))


def _power(power: Power) -> str:
    """What a pilot says of the seeds that are planned."""
    needed = (
        "as planned"
        if power.enough == power.seeds
        else f"{ENOUGH_POWER:.0%} need {power.enough or f'more than {MOST_SEEDS:,}'}"
    )
    return (
        f"Power, {power.claim}: if the truth is what the pilot saw, {power.seeds} seeds an arm "
        f"decide it {power.power:.0%} of the time; {needed}."
    )


def invalidate(target: str, *, because: str) -> None:
    """Take something out of evidence, and what rests on it. Nothing is deleted.

    Tables, verdicts and the log change with it; `assay restore` undoes it.

    Args:
        target: Run id (or its first letters); a study id, for all runs that it has now;
            analysis:STUDY/NAME@VERSION, for the values of that version; or artifact:SHA256 (or its
            first letters), for all runs that read it and all analyses of it.
        because: The reason; it appears in tables and the log.
    """
    settings = Settings.from_environment()
    if not because.strip():
        raise StoreError('An invalidation needs a reason: --because "the client leaked …".')
    with open_index(settings) as index:
        struck = strike(target, index)
    if struck.name in invalidations(ledger(settings)):
        raise StoreError(
            f"{struck.name} is invalidated already. `assay restore {struck.name}` undoes it."
        )
    # The runs by name: a run that is made later is not struck with them.
    body = {"target": struck.name, "because": because, "runs": sorted(struck.runs)}
    before = {study: _judged(study, settings) for study in struck.studies}
    record(settings.ledger_dir, "invalidate", struck.studies[0], body)
    console = Output()
    console.print(f"{struck.name} is out of evidence: {because}")
    for study, old in before.items():
        _tell_change(old, _judged(study, settings), console)


def restore(target: str, *, because: str) -> None:
    """Undo an invalidation, as a further event.

    Args:
        target: What was invalidated, by the same name (or its first letters): a run id, a study id,
            analysis:STUDY/NAME@VERSION or artifact:SHA256.
        because: The reason.
    """
    settings = Settings.from_environment()
    standing = invalidations(ledger(settings))
    matches = [name for name in standing if name.startswith(target)]
    if len(matches) != 1:
        raise StoreError(
            f"{'Nothing' if not matches else 'More than one thing'} that is invalidated starts with "
            f"{target!r}. Invalidated: {', '.join(standing) or 'nothing'}."
        )
    event = standing[matches[0]]
    whole = str(event.body["target"])
    if whole != matches[0]:
        raise StoreError(
            f"{matches[0]} is out of evidence together with {whole}, and only all of it can be "
            f"restored: `assay restore {whole}`; then invalidate again what shall stay out."
        )
    with open_index(settings) as index:
        studies = strike(whole, index).studies
    body = {"target": whole, "because": because}
    before = {study: _judged(study, settings) for study in studies}
    record(settings.ledger_dir, "restore", event.study, body, follows=[event.digest])
    console = Output()
    console.print(f"{whole} is evidence again: {because}")
    for study, old in before.items():
        _tell_change(old, _judged(study, settings), console)


def revise(claim: str, *, by: str, because: str) -> None:
    """Record that a claim's conclusion is replaced by that of another. Both stay in the log, linked.

    The verdicts are what they were: to take runs out of evidence, `assay invalidate` them.

    Args:
        claim: The claim that is revised, as STUDY/CLAIM.
        by: The claim that shows it, as STUDY/CLAIM.
        because: The reason; it appears in the log of both.
    """
    settings = Settings.from_environment()
    if not because.strip() or claim == by:
        raise StoreError(
            'A revision needs another claim and a reason: --by STUDY/CLAIM --because "…".'
        )
    found = {name: _verdict_of(name, settings) for name in (claim, by)}
    if claim in revised_by(by, ledger(settings)):
        raise StoreError(
            f"A revision must not lead back to itself: {by} is revised by {claim} already. Name "
            "a third claim, or leave it: both verdicts stay as they are."
        )
    body = {"claim": claim, "by": by, "because": because}
    record(settings.ledger_dir, "revise", claim.partition("/")[0], body)
    console = Output()
    console.print(f"{claim} ({found[claim]}) is revised by {by} ({found[by]}): {because}")
    console.print("`assay log` writes it into the log of both.")


def _verdict_of(name: str, settings: Settings) -> str:
    """The verdict of STUDY/CLAIM as it stands."""
    study, _, claim = name.partition("/")
    loaded = open_study(study, settings)
    if claim not in loaded.claims:
        if not claim:
            raise StudyError(
                f"A claim is named as STUDY/CLAIM; {name!r} names a study. Its claims: "
                f"{', '.join(f'{loaded.id}/{each}' for each in loaded.claims) or 'none'}."
            )
        raise StudyError(
            f"{loaded.file}: {unknown_key(claim, list(loaded.claims), what='claim')} A claim is "
            "named as STUDY/CLAIM."
        )
    with open_index(settings, loaded.id) as index:
        judged = judge_study(loaded, index, ledger(settings))
    return next(j.verdict for j in judged.judgements if j.name == claim)


def _judged(study: str, settings: Settings) -> StudyVerdict | str | None:
    """What a study comes to; a sentence if it cannot be judged, None for ad-hoc runs."""
    try:
        if study not in study_paths(settings):
            return None
        loaded = open_study(study, settings)
        with open_index(settings, loaded.id) as index:
            return judge_study(loaded, index, ledger(settings))
    except AssayError as error:
        # An event is recorded whatever is wrong with the study's file.
        return f"The study is not judged: {error}"


def _tell_change(
    before: StudyVerdict | str | None, after: StudyVerdict | str | None, console: Console
) -> None:
    """Say which claims got another verdict, and why."""
    if not isinstance(after, StudyVerdict):
        if after is not None:
            console.print(after)
        return
    old = (
        {judgement.name: judgement.verdict for judgement in before.judgements}
        if isinstance(before, StudyVerdict)
        else {}
    )
    changed = [j for j in after.judgements if j.verdict != old.get(j.name)]
    for judgement in changed:
        was = old.get(judgement.name, "not judged")
        console.print(f"{judgement.name}: {was} → {judgement.verdict}. {judgement.why}")
    if not changed:
        console.print(f"No verdict changed: {after.headline}.")
    console.print(f"`assay log` writes it into the log of {after.study.id}.")
