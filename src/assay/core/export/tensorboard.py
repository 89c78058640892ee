"""TensorBoard event files: one folder a run, with scalars, hyper-parameters and texts.

TensorBoard shows 32-bit numbers, and its server drops 64-bit ones without a word. So a value is
written as 32 bits, and exactly in a field beside it that TensorBoard passes over and
`assay.core.foreign` reads. What the run is stands in the text plugin as
`assay/arm`, `assay/commit` and so on; its parameters feed the HPARAMS page. Files carry no name of
this machine, and equal runs give equal bytes.
"""

import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from assay.core.errors import ConfigError
from assay.core.export.gather import SUMMARY, ExportedRun
from assay.core.export.whole import whole

FILE_NAME = "events.out.tfevents.0.assay"
ABOUT = "assay/"
"""Before the tags of texts that say what a run is."""
_ENDS = {"completed": "STATUS_SUCCESS", "open": "STATUS_RUNNING"}


def write_tensorboard(runs: Iterable[ExportedRun], out: Path) -> None:
    """Write runs as a folder for `tensorboard --logdir OUT`.

    Raises:
        StoreError: `out` exists or cannot be written.
        ConfigError: The library tensorboard is not installed.
    """
    library = _Library()
    with whole(out) as temporary:
        temporary.mkdir()
        for run in runs:
            folder = temporary.joinpath(*map(_slug, run.name.split("/")))
            folder.mkdir(parents=True)
            with (folder / FILE_NAME).open("xb") as file:
                _write_run(library, run, file)


class _Library:
    """The parts of tensorboard that are used here; none of them needs TensorFlow or torch."""

    def __init__(self) -> None:
        def part(name: str) -> Any:
            return importlib.import_module(f"tensorboard.{name}")

        try:
            self.events = part("compat.proto.event_pb2")
            self.summaries = part("compat.proto.summary_pb2")
            self.tensors = part("util.tensor_util")
            self.scalars = part("plugins.scalar.metadata")
            self.texts = part("plugins.text.metadata")
            self.hparams = part("plugins.hparams.metadata")
            self.hparams_data = part("plugins.hparams.plugin_data_pb2")
            self.hparams_api = part("plugins.hparams.api_pb2")
            self.records = part("summary.writer.record_writer")
        except ImportError as error:
            raise ConfigError(
                f"--to tensorboard needs the library tensorboard, which cannot be imported "
                f"({error}). Install it with: pip install 'assay[tensorboard]'"
            ) from error


def _write_run(library: _Library, run: ExportedRun, file: BinaryIO) -> None:
    records = library.records.RecordWriter(file)

    def put(*values: Any, time: float, step: int = 0) -> None:
        summary = library.summaries.Summary(value=values)
        event = library.events.Event(wall_time=time, step=step, summary=summary)
        records.write(event.SerializeToString(deterministic=True))

    version = library.events.Event(wall_time=run.created_s, file_version="brain.Event:2")
    records.write(version.SerializeToString())
    ended_s = run.created_s if run.ended_s is None else run.ended_s
    start, end = _session(library, run, ended_s)
    put(start, time=run.created_s)
    for key, value in run.about.items():
        if value is not None:
            put(_text(library, ABOUT + key, _plain(value)), time=run.created_s)
    for name, series in sorted(run.series.items()):
        # Only the first event of a tag must say which plugin it is for.
        described = library.scalars.create_summary_metadata(display_name="", description="")
        for step, number, time in zip(*(column.tolist() for column in series), strict=True):
            put(_scalar(library, name, number, described), time=time, step=step)
            described = None
    for name, number in sorted(run.summary.items()):
        described = library.scalars.create_summary_metadata(display_name="", description="")
        put(_scalar(library, SUMMARY + name, number, described), time=ended_s, step=run.last_step)
    put(end, time=ended_s)


def _scalar(library: _Library, tag: str, number: float, described: Any) -> Any:
    with np.errstate(over="ignore"):
        tensor = library.tensors.make_tensor_proto(np.float32(number))
    tensor.double_val.append(number)
    return library.summaries.Summary.Value(tag=tag, tensor=tensor, metadata=described)


def _text(library: _Library, tag: str, text: str) -> Any:
    tensor = library.tensors.make_tensor_proto(text, dtype=np.object_)
    described = library.texts.create_summary_metadata(display_name=tag, description="")
    return library.summaries.Summary.Value(tag=tag, tensor=tensor, metadata=described)


def _session(library: _Library, run: ExportedRun, ended_s: float) -> tuple[Any, Any]:
    """The two marks between which the HPARAMS page sees one session of training."""
    data, hparams = library.hparams_data, library.hparams
    start = data.SessionStartInfo(group_name=str(run.about["run"]), start_time_secs=run.created_s)
    for key, value in run.params.items():
        if isinstance(value, bool):
            start.hparams[key].bool_value = value
        elif isinstance(value, int | float) and float(value) == value:
            start.hparams[key].number_value = value
        else:
            start.hparams[key].string_value = _plain(value)
    status = _ENDS.get(str(run.about["status"]), "STATUS_FAILURE")
    end = data.SessionEndInfo(
        status=library.hparams_api.Status.Value(status), end_time_secs=ended_s
    )
    marks = (
        (hparams.SESSION_START_INFO_TAG, data.HParamsPluginData(session_start_info=start)),
        (hparams.SESSION_END_INFO_TAG, data.HParamsPluginData(session_end_info=end)),
    )
    first, last = (
        library.summaries.Summary.Value(
            tag=tag, tensor=hparams.NULL_TENSOR, metadata=hparams.create_summary_metadata(content)
        )
        for tag, content in marks
    )
    return first, last


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _slug(part: str) -> str:
    """A folder's name; ids keep the folders of different runs apart."""
    return re.sub(r"[^A-Za-z0-9._=,+-]", "_", part).lstrip(".")[:150] or "_"
