"""Runs of other trackers: TensorBoard event files and MLflow's `mlruns` folders, as *reported* data.

What is read here was recorded by somebody else's program: nobody knows its commit, its environment
or what was left out. It is listed and compared, and never evidence. Everything is read as data:
nothing is executed, no link is followed, and no path that a file names is opened. What cannot be
read is counted and told.
"""

from pathlib import Path

from assay.core.errors import DataError
from assay.core.foreign.mlruns import META_NAME, read_mlruns, with_meta
from assay.core.foreign.records import ReportedRun, ReportedRuns, must_be_folder
from assay.core.foreign.tensorboard import event_files, read_tensorboard

__all__ = ["ReportedRun", "ReportedRuns", "read_mlruns", "read_reported", "read_tensorboard"]


def read_reported(folder: Path) -> ReportedRuns:
    """Read a folder of either kind.

    Raises:
        DataError: It is neither, or cannot be read.
        ConfigError: The library that reads it is not installed.
    """
    must_be_folder(folder)
    if any(True for _ in with_meta(folder)):
        return read_mlruns(folder)
    if any(True for _ in event_files(folder)):
        return read_tensorboard(folder)
    raise DataError(
        f"{folder} must hold TensorBoard event files (*tfevents*) or be an mlruns folder "
        f"({META_NAME} in it or in the folders of its experiments); it has neither. Give the folder "
        "that the other tool writes to."
    )
