"""Task `evaluate`: judge a checkpoint that somebody else trained, one test set a run."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from assay.core.engine import RunContext
from assay.core.errors import CheckpointError, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """A checkpoint and the size of the test set of each data seed."""

    checkpoint: str
    """File name in the data folder (`ASSAY_DATA`), or in its subfolder checkpoints."""
    sha256: str
    """Digest of the file: another file under this name is refused."""
    val_size: int = 5000
    """Held-out pairs that come before the test pairs; not judged."""
    test_size: int = 10_000
    """Pairs of the test set of one data seed."""

    def __post_init__(self) -> None:
        if Path(self.checkpoint).name != self.checkpoint:
            raise ConfigError(
                f"checkpoint must be a file name without a folder; got {self.checkpoint!r}. The "
                "folder is ASSAY_DATA, so that the study says the same on every machine."
            )
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            raise ConfigError(
                f"sha256 must be 64 lower-case hexadecimal digits; got {self.sha256!r}. "
                "`sha256sum FILE` prints it."
            )
        if self.val_size < 0 or self.test_size < 1:
            raise ConfigError(
                f"val_size must be at least 0 and test_size at least 1; got {self.val_size} and "
                f"{self.test_size}."
            )


def evaluate(configs: Sequence[EvaluateConfig], contexts: Sequence[RunContext]) -> None:
    """Judge each run's checkpoint on the test set of its data seed."""
    # torch is imported when a run computes, not when a study is read
    from assay.engines.addition.backend import choose  # noqa: PLC0415
    from assay.engines.addition.checkpoint import load_model  # noqa: PLC0415
    from assay.engines.addition.data import holdout  # noqa: PLC0415
    from assay.engines.addition.evaluate import score  # noqa: PLC0415
    from assay.engines.addition.layout import num_parameters  # noqa: PLC0415

    for config, context in zip(configs, contexts, strict=True):
        model = load_model(find(config, context.data_dir))
        backend = choose(model.config, device="cpu", threads=context.threads)
        pairs = holdout(context.seeds["data"], config.val_size, config.test_size).test
        found = score(model.parameters, 0, pairs, backend)
        context.summary(
            {
                "model/parameters": float(num_parameters(model.config)),
                "test/exact_match": found.exact_match,
                "test/errors": float(found.errors),
                "test/loss_nats": found.loss_nats,
            }
        )


def check(configs: Sequence[EvaluateConfig], data_dir: Path | None) -> None:
    """Every checkpoint must be there before the first run starts."""
    for config in configs:
        find(config, data_dir)


def find(config: EvaluateConfig, data_dir: Path | None) -> Path:
    """The checkpoint file, checked against its digest.

    Raises:
        CheckpointError: There is no such file, or it is another one.
    """
    for folder in [data_dir, data_dir / "checkpoints"] if data_dir else []:
        path = folder / config.checkpoint
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest != config.sha256:
                raise CheckpointError(
                    f"{path}: the file must have sha256 {config.sha256}; it has {digest}. It is "
                    "another file under the same name."
                )
            return path
    raise CheckpointError(
        f"{config.checkpoint}: the file must be in the data folder or its subfolder checkpoints; "
        f"ASSAY_DATA is {data_dir or 'not set'}. Set ASSAY_DATA to the folder that holds it."
    )


def fingerprint(
    config: EvaluateConfig, seeds: Mapping[str, int], data_dir: Path | None
) -> dict[str, str]:
    """What a run reads: the checkpoint and the generated test set."""
    from assay.engines.addition.data import digest_of, holdout  # noqa: PLC0415

    held = holdout(seeds["data"], config.val_size, config.test_size)
    return {
        config.checkpoint: f"sha256 {config.sha256}",
        f"test set {seeds['data']}": digest_of(held.test),
    }
