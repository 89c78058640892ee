"""`assay credit`: train nets by estimated credit, and measure stored ones, without a study.

A study (`assay run`) is the way to results that can support a claim; this writes plain files.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from assay.cli.common import Output, headed_table, print_json
from assay.cli.credit_files import contexts_of, find_own_modules, read, train_pending
from assay.cli.local_files import finals
from assay.cli.options import SetOption, assigned, checked, seeds_of, tell_settings
from assay.core.errors import ConfigError
from assay.engines.credit.config import TrainConfig
from assay.engines.credit.engine import ENGINE

app = App(name="credit", help="Nets that learn without backpropagation through hidden layers.")
Json = Annotated[bool, Parameter(name="--json", negative="")]
AtLeastOne = validators.Number(gte=1)
SHOWN = {
    "test/accuracy": "accuracy",
    "test/gamma": "gamma",
    "test/rho": "rho",
    "test/nudge_nats": "nudge, nats",
    "test/copy_gamma": "gamma of copying",
    "test/valid_rate": "valid share",
}
CEILING = (
    "gamma of copying: what handing the credit of h_L to every layer would have on these nets. Below it, an "
    "estimator does worse than copying; above, it has learned more than that the nets are near the identity."
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class What:
    """What is trained."""

    data: str = "digits"
    """ladder, digits, fashion-mnist, cifar10, hub:NAME, or an .npz of yours."""
    method: str = "dfa"
    """Of `assay credit estimators`, or module:Class of your own in this folder or project."""
    depth: int = 4
    """Blocks."""
    width: int = 128
    """Numbers of a hidden state."""
    epochs: int = 20
    """Passes over the training samples."""
    seeds: str = "0,1,2"
    """Of initialisation and order of the samples, and on the ladder of the teacher; one run each."""
    set_: SetOption = None
    """Further settings as name=value, as in a study's [config]; values are JSON."""

    @cached_property
    def config(self) -> TrainConfig:
        """All of it, checked. The ladder's blocks are tanh, like its teacher's, unless set."""
        own = {name: getattr(self, name) for name in ("data", "method", "depth", "width", "epochs")}
        others = assigned(self.set_ or [], "normalise=none")
        for name in own:
            if name in others:
                raise ConfigError(f"--set {name}: give it as --{name}.")
        if self.data == "ladder":
            own["block"] = "tanh"
        if self.data.endswith(".npz") and Path(self.data).is_file():
            own["data"] = str(Path(self.data).resolve())
        return checked(TrainConfig, own | others, listing="assay credit settings")

    @cached_property
    def chosen(self) -> list[int]:
        """The seeds."""
        return seeds_of(self.seeds)


@app.command
def train(
    out: Path,
    what: What | None = None,
    *,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train nets by estimated credit, several seeds stacked in this process.

    Writes OUT/seed-N/ with metrics.csv, summary.json, config.json and last.safetensors (net and
    estimator). Ctrl-C saves the state; the same command goes on from it, bit for bit. Seeds that
    are finished are left as they are, so that more can be added.
    `assay credit settings` lists what can be set.

    Args:
        out: Folder for the runs.
        what: What is trained.
        quiet: No progress lines.
    """
    what = what or What()
    find_own_modules()
    contexts = contexts_of(out, what.config, what.chosen, quiet=quiet)
    if not train_pending(what.config, contexts):
        print(f"stopped; the same command goes on from {out}", file=sys.stderr)
        raise SystemExit(130)
    found = [finals(context.folder) for context in contexts]
    table = headed_table("", "mean ± std", "seeds")
    for metric, says in SHOWN.items():
        table.add_row(says, _spread([each[metric] for each in found]), str(len(found)))
    console = Output()
    console.print(table)
    console.print(CEILING)


@app.command
def probe(
    run: str,
    *,
    method: str | None = None,
    samples: Annotated[int | None, Parameter(validator=AtLeastOne)] = None,
    json: Json = False,
) -> None:
    """Measure the credit of a stored run layer by layer, on samples of the test part.

    Args:
        run: Folder of `assay credit train` (OUT/seed-N), or a run of the lab by its id or folder.
        method: Another estimator on the same net, one that learns nothing: bp, copy, zero, dfa, fa,
            sign-symmetric, node-perturbation, forward-gradient, or module:Class of your own.
        samples: How many at most. Default: those of the run's own measures.
        json: Plain data.
    """
    from assay.engines.credit import probe as probes
    from assay.engines.credit.loop import one_thread

    find_own_modules()
    with one_thread():
        training = probes.load(read(run))
        estimator = probes.estimator_of(training, method)
        layers = probes.by_layer(training, estimator, samples)
    means = {name: statistics.fmean(values) for name, values in layers.items()}
    name = method or training.config.method
    if json:
        print_json({"run": run, "method": name, "layers": layers, "mean": means})
        return
    table = headed_table("layer", *layers)
    rows = [
        *(dict(zip(layers, row, strict=True)) for row in zip(*layers.values(), strict=True)),
        means,
    ]
    for number, row in enumerate(rows):
        label = "mean" if number == len(rows) - 1 else f"h_{number}"
        table.add_row(label, *(f"{value:.4f}" for value in row.values()))
    console = Output()
    console.print(f"{name} on the net of {run}, {training.config.data}")
    console.print(table)
    console.print("copy_gamma: the gamma of handing the credit of h_L to every layer.")


@app.command
def linesearch(
    run: str,
    *,
    method: str | None = None,
    batches: Annotated[int, Parameter(validator=AtLeastOne)] = 6,
    batch: Annotated[int, Parameter(validator=AtLeastOne)] = 128,
    json: Json = False,
) -> None:
    """How far the loss falls along the local update that the credit gives, of length 1.

    Three changes of the loss: on the credit's own batch at its best step size (same), on a held-out
    batch at that step size (held), and there at the step size that was best on a third batch
    (fair). Beside the estimator stand the true credit (bp), and both with their sign turned round:
    what the turned one reaches too is no use of the credit. The last block (last1) gets exact
    credit from every estimator, so only last2 and all tell them apart.

    Args:
        run: Folder of `assay credit train` (OUT/seed-N), or a run of the lab by its id or folder.
        method: Another estimator that learns nothing, as with `probe`.
        batches: Repetitions, each on batches of its own.
        batch: Samples of a batch.
        json: Plain data.
    """
    from dataclasses import asdict

    from assay.engines.credit import probe as probes
    from assay.engines.credit.loop import one_thread

    find_own_modules()
    with one_thread():
        training = probes.load(read(run))
        name = method or training.config.method
        estimators = {name: probes.estimator_of(training, method)}
        estimators.setdefault("bp", probes.estimator_of(training, "bp"))
        found = probes.line_searches(training, estimators, batches=batches, size=batch)
    if json:
        print_json(
            {
                "run": run,
                "batches": batches,
                "batch": batch,
                "found": [asdict(each) for each in found],
            }
        )
        return
    table = headed_table("credit", "blocks", "kind", "same", "held", "fair")
    for each in found:
        sign = "" if each.sign > 0 else "−"
        values = [_spread(part, 4) for part in (each.same, each.held, each.fair)]
        table.add_row(sign + each.credit, each.where, each.kind, *values)
    console = Output()
    console.print(
        f"loss change in nats, mean ± std over {batches} batches of {batch}, net of {run}"
    )
    console.print(table)


@app.command
def estimators(*, json: Json = False) -> None:
    """All methods, with the derivatives of the net that each declares.

    Args:
        json: Plain data.
    """
    from assay.engines.credit.estimators.registry import ESTIMATORS

    found = {
        name: {
            "says": (kind.__doc__ or "").strip().splitlines()[0],
            "derivatives": sorted(kind.derivatives),
        }
        for name, kind in ESTIMATORS.items()
    }
    if json:
        print_json(found)
        return
    table = headed_table("method", "derivatives", "what it is")
    for name, about in found.items():
        table.add_row(name, ", ".join(about["derivatives"]) or "–", str(about["says"]))
    Output().print(table)


@app.command
def settings(*, task: Literal["train", "frozen", "lq"] = "train") -> None:
    """All settings of a run, for --set and for a study's [config], and the metrics that it reports.

    Args:
        task: Of a study; --set of `assay credit train` takes those of "train".
    """
    chosen = ENGINE.tasks[task]
    tell_settings(chosen.config, chosen.metrics)


def _spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and sample deviation; of one value there is none."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
