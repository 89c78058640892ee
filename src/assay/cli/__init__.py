"""The command line: parses, then calls. One file per command group, loaded when it is used."""

import os
import sys
from typing import Any, get_args

from cyclopts import App, CoercionError, CycloptsError

from assay import __version__
from assay.core.errors import AssayError


def whole_numbers(_app: App, _command: tuple[str, ...], arguments: Any) -> None:
    """Refuse 3.5 where an option takes a whole number: the parser itself would round it."""
    for argument in arguments:
        if int not in (argument.hint, *get_args(argument.hint)):
            continue
        for token in argument.tokens:
            if "." in token.value:
                said = f"it takes a whole number; got {token.value}."
                raise CoercionError(msg=said, argument=argument, token=token)


app = App(
    name="assay",
    help="A laboratory for experiments on how neural networks learn. "
    "Every number in its log is bound to the runs it came from, or says that it is not.",
    version=__version__,
    help_format="plaintext",
    config=whole_numbers,
)
COMMANDS = {
    "run": ("run", "Run a study, or any program: assay run -- CMD."),
    "ls": ("show", "List studies, or the runs of one."),
    "show": ("show", "Show one run: state, metrics, provenance."),
    "table": ("table", "Mean ± std [n] per arm."),
    "baseline": ("table", "Set a named, versioned baseline."),
    "diff": ("show", "What differs between two runs."),
    "verdict": ("judge", "Judge a study's claims."),
    "analyse": ("analyse", "Compute analyses of stored artifacts."),
    "audit": ("judge", "Look for what the runs show to be wrong."),
    "freeze": ("judge", "Lock commit, data and criteria."),
    "invalidate": ("judge", "Take a run out of evidence."),
    "restore": ("judge", "Undo an invalidation."),
    "revise": ("judge", "Link a claim to the one that replaces it."),
    "log": ("log", "Write EXPERIMENTS.md, or check it."),
    "index": ("show", "Refresh or rebuild the index."),
    "export": ("export", "Write runs for TensorBoard, MLflow, CSV or Parquet."),
    "import": ("imports", "Read hand-kept logs and audit their arithmetic."),
    "import-runs": ("foreign", "List the runs of TensorBoard or MLflow files."),
}
"""Command → its module, and what `assay --help` says of it without loading the module."""
for _name, (_module, _says) in COMMANDS.items():
    _function = "import_" if _name == "import" else _name.replace("-", "_")
    app.command(f"assay.cli.{_module}:{_function}", name=_name, help=_says)
app.command("assay.cli.addition:app", name="addition", help="Engine: transformers that add.")
app.command("assay.cli.credit:app", name="credit", help="Engine: learning from estimated credit.")
app.command("assay.cli.concepts:app", name="concepts", help="Engine: texts as concept vectors.")
app.command("assay.cli.swarm:app", name="swarm", help="Engine: clients of different sizes.")

BROKEN_PIPE = 141
PROGRAM = "--"
"""Before a program: what follows belongs to it, options included."""


def main() -> None:
    """Run the command line; a user's mistake ends with one paragraph and exit code 2."""
    tokens = sys.argv[1:]
    if PROGRAM in tokens and tokens[0] == "run":
        # The first one ends the options; the second tells `run` that a program was given.
        tokens.insert(tokens.index(PROGRAM), PROGRAM)
    if tokens[:1] and tokens[0] in COMMANDS:
        # Of itself a command says more than that line: what its docstring says.
        app[tokens[0]].help = None
    try:
        try:
            app(tokens, exit_on_error=False, print_error=False)
        finally:
            # Here, where a closed pipe can still be told from success.
            sys.stdout.flush()
    except AssayError as error:
        _fail(str(error), error.exit_code)
    except CycloptsError as error:
        _fail(f"{' '.join(str(error).split())} See `assay {_command(tokens)}--help`.", 2)
    except BrokenPipeError:
        # Whoever read has read enough. Nothing is left to be flushed into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(BROKEN_PIPE)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)


def _command(tokens: list[str]) -> str:
    """The command that was meant, and the one within it, if there are such."""
    meant, within = "", app
    for token in tokens[:2]:
        if token not in within:
            break
        meant, within = f"{meant}{token} ", within[token]
    return meant
