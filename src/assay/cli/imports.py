"""`assay import`: hand-kept logs as reported entries, and their arithmetic."""

import sys
from pathlib import Path

from assay.cli.common import print_json
from assay.core.errors import ConfigError
from assay.core.export.whole import whole


def import_(*files: Path, json: bool = False, markdown: Path | None = None) -> None:
    """Read hand-kept logs and audit their arithmetic; no run is needed.

    Headings with dates and verdicts, commands, settings, tables and numbers become reported
    entries, each with its file and line. They are never evidence, and nothing in a log is executed,
    opened or followed.

    Exit code: 0 nothing found, 1 notes only, 4 numbers that cannot be, 2 a file cannot be read.

    Args:
        files: Markdown or text files, one or more.
        json: Plain data: entries and findings.
        markdown: Write the report to this new file.
    """
    from assay.core.reported.audit import audit
    from assay.core.reported.document import read_log
    from assay.core.reported.entries import entries
    from assay.core.reported.report import Imported, as_data, as_markdown, as_text

    if not files:
        raise ConfigError(
            "An import needs at least one log; none was given. Name Markdown files: "
            "assay import EXPERIMENTS.md"
        )
    logs = []
    for path in files:
        document = read_log(path)
        logs.append(Imported(document, entries(document), audit(document)))
    if markdown is not None:
        with whole(markdown) as temporary:
            temporary.write_text(as_markdown(logs), "utf-8")
    if json:
        print_json(as_data(logs))
    else:
        sys.stdout.write(as_text(logs))
    severities = {finding.severity for log in logs for finding in log.findings}
    sys.exit(4 if "error" in severities else 1 if severities else 0)
