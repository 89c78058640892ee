"""A callback for Hugging Face's `Trainer` that logs into a run.

    from assay.core.export.huggingface import AssayCallback

    with assay.init(config={"lr": 3e-4}, seeds={"init": 1}) as run:
        Trainer(..., callbacks=[AssayCallback(run)]).train()

The run stays its owner's: the callback neither begins nor ends it.
"""

from collections.abc import Mapping
from typing import Any

from assay.core.errors import ConfigError
from assay.core.session import Run

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ConfigError(
        f"AssayCallback needs the library transformers, which cannot be imported ({error}). "
        "Install it with: pip install 'assay[transformers]'"
    ) from error

SPLITS = ("eval", "test")


class AssayCallback(TrainerCallback):
    """Logs what the Trainer logs, as `split/quantity`: `eval_loss` becomes `eval/loss`.

    What carries no split is `train/…`; times and speeds, which differ between runs that computed the
    same, are `time/…` and `speed/…`. Values that are no numbers are told in the log of the run
    instead. At the end of training the steps done are recorded as spent.
    """

    def __init__(self, run: Run) -> None:
        """Log into this run.

        Args:
            run: What `assay.init()` gave. With several processes, the Trainer's main one logs.
        """
        self.run = run
        self._told: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the Trainer's settings as an event of the run."""
        if state.is_world_process_zero:
            settings = {
                key: value
                for key, value in args.to_dict().items()
                if isinstance(value, str | int | float | bool)
                and "token" not in key
                # Names of folders on this machine are no settings.
                and not key.endswith("_dir")
            }
            self.run.event("trainer", "Hugging Face Trainer begins", settings=settings)

    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record what the Trainer logs at a step."""
        if not state.is_world_process_zero or not logs:
            return
        values = {}
        for name, value in logs.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._tell(name, value)
            else:
                values[split_name(name)] = value
        if values:
            self.run.log(values, step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the steps that were done."""
        if state.is_world_process_zero:
            self.run.spent(steps=state.global_step)

    def _tell(self, name: str, value: Any) -> None:
        if name not in self._told:
            self._told.add(name)
            self.run.event("trainer", f"not taken as a number: {name} = {str(value)[:80]!r}")


def split_name(name: str) -> str:
    """A name of the Trainer's as `split/quantity`; times and speeds apart from what was learned."""
    if name.endswith("_runtime"):
        return f"time/{name.removesuffix('_runtime')}_s"
    if name.endswith("_per_second"):
        return f"speed/{name}"
    for split in SPLITS:
        if name.startswith(f"{split}_"):
            return f"{split}/{name.removeprefix(f'{split}_')}"
    return f"train/{name}"
