"""A logger for Lightning's `Trainer` that logs into a run.

    from assay.core.export.lightning import AssayLogger

    with assay.init(config={"lr": 3e-4}, seeds={"init": 1}) as run:
        Trainer(..., logger=AssayLogger(run)).fit(model)

The run stays its owner's: the logger neither begins nor ends it. Import the library that you train
with first: both `lightning` and `pytorch_lightning` are served.
"""

import importlib
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from assay.core.config import flatten
from assay.core.errors import ConfigError
from assay.core.session import Run


def _library(module: str) -> Any:
    # The two names are two copies of one library, and a Trainer wants a logger of its own copy.
    names = ["pytorch_lightning", "lightning.pytorch"]
    names.sort(key=lambda name: name not in sys.modules)
    for name in names:
        try:
            return importlib.import_module(f"{name}.{module}")
        except ImportError as error:
            failure = error
    raise ConfigError(
        f"AssayLogger needs the library lightning, which cannot be imported ({failure}). Install "
        "it with: pip install 'assay[lightning]'"
    ) from failure


_loggers = _library("loggers.logger")
_rank_zero_only = _library("utilities.rank_zero").rank_zero_only


class AssayLogger(_loggers.Logger):  # type: ignore[name-defined]
    """Logs what a LightningModule logs, under the names that it gives."""

    def __init__(self, run: Run) -> None:
        """Log into this run.

        Args:
            run: What `assay.init()` gave. With several processes, the first one logs.
        """
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        """The study of the run."""
        return Path(self.run.path).parts[-4]

    @property
    def version(self) -> str:
        """The id of the run."""
        return self.run.id

    @property
    def experiment(self) -> Run:
        """The run itself, for whatever else shall be recorded."""
        return self.run

    @_rank_zero_only  # type: ignore[untyped-decorator]
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metric values at a step."""
        if metrics:
            self.run.log(metrics, step=step)

    @_rank_zero_only  # type: ignore[untyped-decorator]
    def log_hyperparams(
        self, params: Mapping[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Tell in the log of the run which settings the module has that the run does not."""
        given = vars(params) if isinstance(params, Namespace) else dict(params)
        declared = flatten(self.run.config)
        strange = {
            key: value if isinstance(value, str | int | float | bool | None) else str(value)
            for key, value in flatten(given).items()
            if key not in declared or declared[key] != value
        }
        if strange:
            listed = ", ".join(f"{key} = {value}" for key, value in strange.items())
            self.run.event("undeclared-config", f"the module has settings of its own: {listed}")

    @_rank_zero_only  # type: ignore[untyped-decorator]
    def finalize(self, status: str) -> None:
        """Tell of a training that did not succeed; the run's owner ends the run."""
        if status != "success":
            self.run.event("trainer", f"Lightning ended with {status!r}")
