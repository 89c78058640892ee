"""The command line: parses, then calls. One file per command group, loaded when it is used."""

import sys

from cyclopts import App

from assay import __version__
from assay.core.errors import AssayError

app = App(
    name="assay",
    help="A laboratory for experiments on how neural networks learn. "
    "Every number in its log is bound to the runs it came from, or says that it is not.",
    version=__version__,
    help_format="plaintext",
)
app.command("assay.cli.run:run", name="run", help="Run a study, or any program: assay run -- CMD.")
app.command("assay.cli.show:ls", name="ls", help="List studies, or the runs of one.")
app.command("assay.cli.show:show", name="show", help="Show one run: state, metrics, provenance.")
app.command("assay.cli.table:table", name="table", help="Mean ± std [n] per arm.")
app.command("assay.cli.show:diff", name="diff", help="What differs between two runs.")
app.command("assay.cli.judge:verdict", name="verdict", help="Judge a study's claims.")
app.command("assay.cli.judge:freeze", name="freeze", help="Lock commit, data and criteria.")
app.command("assay.cli.judge:invalidate", name="invalidate", help="Take a run out of evidence.")
app.command("assay.cli.judge:restore", name="restore", help="Undo an invalidation.")
app.command("assay.cli.log:log", name="log", help="Write EXPERIMENTS.md, or check it.")
app.command("assay.cli.show:index", name="index", help="Refresh or rebuild the index.")
app.command("assay.cli.addition:app", name="addition", help="Engine: transformers that add.")


def main() -> None:
    """Run the command line; a user's mistake ends with one paragraph and its exit code."""
    try:
        app()
    except AssayError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(141)
