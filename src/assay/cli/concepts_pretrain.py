"""`assay concepts pretrain`: train an encoder without a study, by one process or several."""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from assay.cli.common import Output
from assay.cli.local_files import Folder, LocalContext, interruptible
from assay.cli.options import SetOption, assigned, checked, tell_settings
from assay.core.config import to_plain
from assay.core.errors import ConfigError
from assay.core.settings import Settings
from assay.engines.concepts.config import USUAL, PretrainConfig
from assay.engines.concepts.engine import ENGINE

LISTING = "assay concepts settings"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class What:
    """What is trained, and on what."""

    corpus: str = "python"
    """python (this interpreter's standard library), hub:NAME, or in the data folder (or by its whole path) a text
    file or a folder with train.txt and valid.txt."""
    objective: str = "mlm"
    """mlm, whole-word, span, tsdae, diffusion or prefix."""
    hidden: int = 128
    """Numbers of a concept."""
    layers: int = 2
    """Of the encoder."""
    slots: int = 32
    """Concepts of a text."""
    steps: int = 600
    """Updates."""
    seed: int = 0
    """Of first weights, dropout, the order of texts and what is hidden in them."""
    set_: SetOption = None
    """Further settings as name=value, as in a study's [config]; values are JSON."""

    @cached_property
    def config(self) -> PretrainConfig:
        """All of it, checked."""
        names = ("corpus", "objective", "hidden", "layers", "slots", "steps")
        own: dict[str, object] = {name: getattr(self, name) for name in names}
        others = assigned(self.set_ or [], "batch=16")
        for name in own:
            if name in others:
                raise ConfigError(f"--set {name}: give it as --{name}.")
        usual = USUAL.get(self.objective, {})
        return checked(PretrainConfig, {**own, **usual, **others}, listing=LISTING)


class Follower(Folder):
    """What the processes beside the first one see of the run: where to go on from, and nothing to write."""

    def load_checkpoint(self) -> tuple[int, bytes] | None:
        """The state in the folder."""
        path = self.folder / LocalContext.state
        content = path.read_bytes() if path.exists() else b""
        return (int.from_bytes(content[:8], "little"), content[8:]) if content else None

    def save(self, name: str, content: bytes) -> str:
        """The first process does; so it does all of the following."""
        return ""

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Nothing."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Nothing."""

    def spent(self, **budget: float) -> None:
        """Nothing."""

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The first process sees to it."""
        yield

    def save_checkpoint(self, step: int, content: bytes) -> None:
        """Nothing."""


def pretrain(
    out: Path,
    what: What | None = None,
    *,
    threads: int = 2,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train an encoder on texts, and store it as the transformers library does.

    Writes OUT/ with metrics.csv, summary.json, config.json and model/ (safetensors and tokenizer, for
    `from_pretrained`). Ctrl-C saves the state; the same command goes on from it, bit for bit. Several
    processes share each batch: torchrun --nproc-per-node 2 --no-python assay concepts pretrain OUT …
    `assay concepts settings` lists what can be set.

    Args:
        out: Folder for the run.
        what: What is trained.
        threads: Of each process.
        quiet: No progress lines.
    """
    what = what or What()
    config, data_dir = what.config, Settings.from_environment().data_dir
    task, seeds = ENGINE.tasks["pretrain"], {"init": what.seed, "data": what.seed}
    digests = task.fingerprint(config, seeds, data_dir)
    told = {"config": to_plain(config), "seeds": seeds, "data": digests}
    # Of several processes each makes it, with the same content; only the first one writes more.
    context = LocalContext(
        out, told=told, seeds=seeds, quiet=quiet, threads=threads, data_dir=data_dir
    )
    if not context.is_finished:
        _train(config, context)
    _judge(context.report(Output()))


GAINED = 0.05
"""Nats below guessing by frequency; less is hardly more than that."""


def _judge(final: Mapping[str, float]) -> None:
    """Whether anything was learned, in a line; exit code 1 where the training diverged."""
    loss, guessed = final["test/loss_nats"], final["test/unigram_nats"]
    if not math.isfinite(loss):
        print("the training diverged: the loss is no number; give a lower lr", file=sys.stderr)
        raise SystemExit(1)
    if loss > guessed - GAINED:
        print(
            f"it has learned hardly more than how often tokens occur: {loss:.3f} nats, and {guessed:.3f} by guessing so; "
            "train longer, or draw larger first weights (--set init_range=0.1)",
            file=sys.stderr,
        )


def _train(config: PretrainConfig, context: LocalContext) -> None:
    """In this process, or in this one's part of several."""
    # Heavy; what is wrong with settings and folder is told before.
    from assay.engines.concepts.pretrain import is_first_process, train, unpacked

    folder = context.folder
    if not is_first_process():
        follower = Follower(
            folder,
            seeds=context.seeds,
            quiet=True,
            threads=context.threads,
            data_dir=context.data_dir,
        )
        with interruptible([follower]):
            train([config], [follower])
        raise SystemExit(0)
    with interruptible([context]):
        train([config], [context])
    if not (folder / "summary.json").exists():
        print(f"stopped; the same command goes on from {folder}", file=sys.stderr)
        raise SystemExit(130)
    unpacked(folder / "model.zip", folder / "model")


def settings() -> None:
    """All settings of a run, for --set and for a study's [config], and the metrics that it reports."""
    tell_settings(PretrainConfig, ENGINE.tasks["pretrain"].metrics)
