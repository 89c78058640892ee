"""Assay: a laboratory for experiments on how neural networks learn.

In a script: `run = assay.init(); run.log({"train/loss_nats": loss}, step=i); run.finish()`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from assay.core.session import Run, finish, init, log

__all__ = ["Run", "__version__", "finish", "init", "log"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loaded at first use: importing a submodule of assay must not pay for the recorder.
    if name in ("Run", "finish", "init", "log"):
        return getattr(importlib.import_module("assay.core.session"), name)
    raise AttributeError(f"module 'assay' has no attribute {name!r}")
