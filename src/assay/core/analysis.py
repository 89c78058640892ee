"""Analyses: versioned functions of stored artifacts, whose values stand beside those of a run.

    def decoded(artifacts, run):  # name → file; id, arm, cell, seeds and config of the run
        return {"sync/agreement": …}

A result is one file in the run's directory, `analysis-NAME-vVERSION-DIGEST.json`, named by the digest
of its content and never overwritten: a newer version adds a file. It names the digests of the
artifacts and of the code that it was computed from, so that one version is one computation.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import msgspec

from assay.core.artifacts import ArtifactStore, write_atomic
from assay.core.config import canonical
from assay.core.definition import Analysis
from assay.core.errors import DataError, StoreError, StudyError
from assay.core.files import explicit, read_json
from assay.core.registry import from_project
from assay.core.run import RunRecord

PATTERN = "analysis-*.json"
DIGEST_LENGTH = 20
MOST_NAMES = 2


class AnalysisResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one version of an analysis gave for one run.

    Attributes:
        name: The analysis.
        version: Its version.
        source_sha256: Digest of the module that holds the function.
        inputs: Artifact name → sha256 of what was read.
        values: Metric → value.
    """

    schema: int = 1
    name: str
    version: int
    source_sha256: str
    inputs: dict[str, str]
    values: dict[str, float | str]

    @property
    def numbers(self) -> dict[str, float]:
        """The values, with NaN and infinities as numbers."""
        return {name: float(value) for name, value in self.values.items()}


def versioned(metric: str, version: int) -> str:
    """The name of a metric of one version of an analysis: it can be used in a criterion."""
    return f"{metric}@{version}"


def read_results(folder: Path) -> list[AnalysisResult]:
    """The results in a run directory, by name and version.

    Raises:
        StoreError: A file cannot be read, or its content is not what its name says.
    """
    found = []
    for path in folder.glob(PATTERN):
        try:
            result = msgspec.convert(read_json(path), AnalysisResult)
        except msgspec.ValidationError as error:
            raise StoreError(f"{path} is no result of an analysis: {error}. {_WAY_OUT}") from error
        if path.name != _file_name(result):
            raise StoreError(
                f"{path} was changed after it was computed: its content belongs to "
                f"{_file_name(result)}. {_WAY_OUT}"
            )
        found.append(result)
    return sorted(found, key=lambda r: (r.name, r.version))


_WAY_OUT = "Restore it from a copy, or delete it and run `assay analyse` again."


def analyse(name: str, analysis: Analysis, folder: Path, record: RunRecord, root: Path) -> bool:
    """Compute an analysis for one run, unless its version is there; returns whether it was computed.

    Args:
        name: Its name.
        analysis: What to compute.
        folder: The run directory.
        record: The run.
        root: The project folder, from which the function is imported.

    Raises:
        StudyError: The function cannot be imported, or its code changed within a version.
        DataError: The run lacks an artifact, or the function gives something that is no number.
    """
    function, source = load(analysis, root)
    for result in read_results(folder):
        if (result.name, result.version) == (name, analysis.version):
            if result.source_sha256 != source:
                raise StudyError(
                    f"Analysis '{name}': version {analysis.version} was computed by other code "
                    f"({result.source_sha256[:9]}, now {source[:9]}; run {record.id}). One version "
                    f"is one computation: raise it to {analysis.version + 1}."
                )
            return False
    store = ArtifactStore(folder)
    there = store.current()
    lacking = [wanted for wanted in analysis.artifacts if wanted not in there]
    if lacking:
        raise DataError(
            f"Run {record.id} has no artifact {_some(lacking)}, which the analysis '{name}' reads. It "
            f"has: {_some(list(there)) or 'none'}. Correct `artifacts` in [analyses.{name}], or run the "
            "study again with a program or setting that stores it."
        )
    chosen = {wanted: there[wanted] for wanted in analysis.artifacts or there}
    paths = {}
    for wanted in chosen:
        store.read(wanted)  # Compares the content with its digest.
        path = store.path(wanted)
        assert path is not None
        paths[wanted] = path
    about = {"id": record.id, "arm": record.arm, "cell": record.cell, "seeds": record.seeds,
             "config": record.config}  # fmt: skip
    values = _checked(function(paths, about), analysis, f"Analysis '{name}', run {record.id}")
    result = AnalysisResult(
        name=name,
        version=analysis.version,
        source_sha256=source,
        inputs={wanted: artifact.sha256 for wanted, artifact in chosen.items()},
        values=explicit(values),
    )
    content = canonical(msgspec.to_builtins(result)).encode() + b"\n"
    write_atomic(folder / _file_name(result), content)
    return True


def load(analysis: Analysis, root: Path) -> tuple[Callable[..., Any], str]:
    """The function of an analysis and the digest of its module.

    Raises:
        StudyError: It cannot be imported, is no function, or has no source.
    """
    try:
        function = from_project(analysis.function, root)
        source = inspect.getsourcefile(inspect.unwrap(function))
        content = Path(str(source)).read_bytes()
    except (ImportError, AttributeError, SyntaxError, TypeError, OSError) as error:
        raise StudyError(
            f"The analysis function '{analysis.function}' must be importable from the project "
            f"folder and have a source file: {error}. Correct module:NAME."
        ) from error
    return function, hashlib.sha256(content).hexdigest()


def rows_of(results: list[AnalysisResult]) -> Iterator[tuple[str, float, str]]:
    """Versioned metric name, value and source, for the index."""
    for result in results:
        for metric, value in result.numbers.items():
            yield (
                versioned(metric, result.version),
                value,
                f"analysis {result.name}@{result.version}",
            )


def _checked(values: Any, analysis: Analysis, where: str) -> dict[str, float]:
    if not isinstance(values, Mapping) or {*values} != {*analysis.metrics}:
        raise DataError(
            f"{where}: must return a number for each of its metrics, "
            f"{', '.join(analysis.metrics)}; got {values!r}."
        )
    wrong = {m: v for m, v in values.items() if isinstance(v, bool) or not isinstance(v, Real)}
    if wrong:
        raise DataError(f"{where}: values must be numbers; got {wrong!r}.")
    return {metric: float(value) for metric, value in values.items()}


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _file_name(result: AnalysisResult) -> str:
    content = canonical(msgspec.to_builtins(result)).encode()
    digest = hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]
    return f"analysis-{result.name}-v{result.version}-{digest}.json"
