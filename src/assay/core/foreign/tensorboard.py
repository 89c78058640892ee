"""TensorBoard event files as reported runs."""

import importlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from assay.core.errors import ConfigError, DataError
from assay.core.foreign.records import Draft, ReportedRuns, files, must_be_folder


def read_tensorboard(folder: Path) -> ReportedRuns:
    """Read all event files below a folder; each folder that holds some is one run.

    Scalars become metrics, texts tags, and hyper-parameters params. Values are those of the file:
    32-bit floats where the program wrote such.

    Raises:
        DataError: It is no folder, or has no event files.
        ConfigError: The library tensorboard is not installed.
    """
    must_be_folder(folder)
    by_folder: dict[Path, list[Path]] = {}
    for path in event_files(folder):
        by_folder.setdefault(path.parent, []).append(path)
    if not by_folder:
        raise DataError(
            f"{folder} must hold TensorBoard event files (*tfevents*); it has none. Give the "
            "folder that the program's SummaryWriter writes to."
        )
    library = _Tensorboard()
    runs = []
    for place, paths in by_folder.items():
        draft = Draft()
        for path in paths:
            _read_events(library, path, draft)
        source = place.relative_to(folder).as_posix()
        runs.append(draft.done(name=source, source=source))
    return ReportedRuns(kind="tensorboard", folder=folder, runs=runs, problems=[])


class _Tensorboard:
    """The parts of tensorboard that read files; none needs TensorFlow or torch."""

    def __init__(self) -> None:
        def part(name: str) -> Any:
            return importlib.import_module(name)

        try:
            self.loader = part("tensorboard.backend.event_processing.event_file_loader")
            self.events = part("tensorboard.compat.proto.event_pb2")
            self.tensors = part("tensorboard.util.tensor_util")
            self.hparams = part("tensorboard.plugins.hparams.plugin_data_pb2")
            self.decode_error = part("google.protobuf.message").DecodeError
        except ImportError as error:
            raise ConfigError(
                "TensorBoard event files need the library tensorboard, which cannot be imported "
                f"({error}). Install it with: pip install 'assay[tensorboard]'"
            ) from error


def _read_events(library: _Tensorboard, path: Path, draft: Draft) -> None:
    whole, torn = _count_records(path)
    draft.torn_lines += torn
    loaded = 0
    refused: dict[str, str] = {}
    # The loader stops at the first damaged record, and says nothing.
    for record in library.loader.RawEventFileLoader(str(path)).Load():
        loaded += 1
        try:
            event = library.events.Event.FromString(record)
            for value in event.summary.value:
                _take(library, event, value, draft, refused)
        except library.decode_error:
            draft.bad_lines += 1
    if loaded < whole:
        draft.bad_lines += whole - loaded
        draft.problems.append(
            f"{path.name}: record {loaded + 1} of {whole} is damaged; it and those after it "
            "were not read"
        )
    draft.problems += [f"{path.name}: {tag}: {why}" for tag, why in refused.items()]


def _count_records(path: Path) -> tuple[int, int]:
    """Whole records of a file by their lengths, and 1 if its end was cut off."""
    size = path.stat().st_size
    count, at = 0, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(8)
            # Length, its checksum, the data, its checksum.
            end = at + 16 + struct.unpack("<Q", head)[0] if len(head) == 8 else size + 1
            if end > size:
                return count, 1
            count, at = count + 1, end
    return count, 0


def _take(
    library: _Tensorboard, event: Any, value: Any, draft: Draft, refused: dict[str, str]
) -> None:
    plugin = value.metadata.plugin_data.plugin_name
    if plugin == "hparams":
        data = library.hparams.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for key, given in data.session_start_info.hparams.items():
            kind = given.WhichOneof("kind")
            draft.params[key] = "" if kind is None else _as_text(getattr(given, kind))
        return
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        _point(draft, value.tag, event, value.simple_value)
        return
    array = None
    if kind == "tensor":
        try:
            array = library.tensors.make_ndarray(value.tensor)
        except (TypeError, ValueError) as error:
            refused.setdefault(value.tag, f"a damaged value ({error})")
            return
    if array is None or array.size != 1:
        refused.setdefault(value.tag, "no scalar, not taken")
    elif array.dtype.kind in "fiu":
        exact = value.tensor.double_val
        # Our own exports put the 64-bit number beside the 32-bit one that TensorBoard shows.
        number = exact[0] if len(exact) == 1 else array.reshape(()).item()
        _point(draft, value.tag, event, float(number))
    elif array.dtype.kind in "OSU":
        text = array.reshape(()).item()
        # The display name of a text that one of our exports wrote is its tag.
        draft.tags[value.tag] = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    else:
        refused.setdefault(value.tag, "no scalar, not taken")


def _point(draft: Draft, tag: str, event: Any, value: float) -> None:
    draft.points.setdefault(tag, []).append((event.step, value, event.wall_time))


def _as_text(value: object) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def event_files(folder: Path) -> Iterator[Path]:
    """Event files below a folder, in order."""
    return (path for path in files(folder) if "tfevents" in path.name)
