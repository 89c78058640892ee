"""The Trainers of Hugging Face and Lightning, really training, into a run of `assay.init()`."""

import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import pytorch_lightning
import torch
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

import assay
from assay.core.export.huggingface import AssayCallback
from assay.core.export.lightning import AssayLogger
from assay.core.metrics import read_metrics
from assay.core.read import IndexedRun, load_run
from assay.core.run import RunState, read_run, verify_run

STEPS = 6


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder without runs."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.setenv("ASSAY_ROOT", str(root))
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ASSAY_RUN_DIR", raising=False)
    monkeypatch.delenv("ASSAY_ATTEMPT", raising=False)
    return root


def ended(run: assay.Run) -> RunState:
    """The run as read back, whole and with its seal intact."""
    state = read_run(run.path)
    verify_run(state)
    return state


def messages(run: assay.Run, kind: str) -> list[str]:
    return [event.message for event in ended(run).events if event.kind == kind]


# Hugging Face


def train(run: assay.Run, folder: Path, *, seed: int = 1, broken: bool = False) -> list[dict]:
    """A few steps of the real Trainer; what it kept of its own log."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def forward(self, x, labels):
            given = self.layer(x).squeeze(-1)
            loss = ((given - labels) ** 2).mean()
            return {"loss": loss * math.nan if broken else loss, "logits": given}

    torch.manual_seed(seed)
    data = [{"x": torch.tensor([i / 16, 1.0]), "labels": torch.tensor(i / 16)} for i in range(16)]
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), max_steps=STEPS, logging_steps=2, eval_strategy="steps",
        eval_steps=3, per_device_train_batch_size=4, report_to=[], use_cpu=True, seed=seed,
        save_strategy="no", disable_tqdm=True, logging_nan_inf_filter=False,
    )  # fmt: skip
    trainer = Trainer(
        model=Net(), args=arguments, train_dataset=data, eval_dataset=data,
        callbacks=[AssayCallback(run)],
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history


def test_the_trainer_logs_into_the_run(tmp_path: Path) -> None:
    """Every number of the Trainer's own history is in the run, under a split, at its step."""
    with assay.init(seeds={"init": 1}) as run:
        history = train(run, tmp_path)
    series = read_metrics(run.path).series
    for theirs, ours in (
        ("loss", "train/loss"), ("eval_loss", "eval/loss"), ("grad_norm", "train/grad_norm"),
        ("learning_rate", "train/learning_rate"), ("eval_runtime", "time/eval_s"),
        ("eval_samples_per_second", "speed/eval_samples_per_second"),
        ("train_loss", "train/train_loss"),
    ):  # fmt: skip
        logged = [(entry["step"], entry[theirs]) for entry in history if theirs in entry]
        assert logged, theirs
        steps, values, _ = series[ours]
        assert list(zip(steps.tolist(), values.tolist(), strict=True)) == logged, theirs
    assert series["train/loss"].steps.tolist() == [2, 4, 6]
    state = ended(run)
    assert state.status == "completed"
    assert state.spent["steps"] == STEPS
    (begin,) = [event for event in state.events if event.kind == "trainer"]
    assert begin.details["settings"]["max_steps"] == STEPS
    assert not any(key.endswith("_dir") for key in begin.details["settings"])


def test_equal_trainings_give_equal_results(tmp_path: Path) -> None:
    """Times and speeds are kept apart: what was learned has the same digest, or another by seed."""
    digests = []
    for number, seed in enumerate((1, 1, 2)):
        with assay.init(seeds={"init": seed}) as run:
            train(run, tmp_path / str(number), seed=seed)
        found = load_run(run.path)
        assert not isinstance(found, str), found
        assert isinstance(found.run, IndexedRun)
        digests.append(found.run.results_sha256)
    assert digests[0] == digests[1] != digests[2]


def test_a_diverged_loss_is_kept_as_nan(tmp_path: Path) -> None:
    """NaN is a result."""
    with assay.init() as run:
        train(run, tmp_path, broken=True)
    assert all(map(math.isnan, read_metrics(run.path).series["train/loss"].values.tolist()))


def test_what_is_no_number_is_told_once(tmp_path: Path) -> None:
    """Texts that a callback logs are events, and other processes of the training log nothing."""
    with assay.init() as run:
        callback = AssayCallback(run)
        arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
        main, other = TrainerState(global_step=3), TrainerState(is_world_process_zero=False)
        main.is_world_process_zero = True
        for _ in range(2):
            logs = {"note": "warm", "loss": 0.5}
            callback.on_log(arguments, main, TrainerControl(), logs=logs)
        callback.on_log(arguments, other, TrainerControl(), logs={"loss": 9.0})
        callback.on_train_end(arguments, other, TrainerControl())
    assert messages(run, "trainer") == ["not taken as a number: note = 'warm'"]
    assert read_metrics(run.path).series["train/loss"].values.tolist() == [0.5, 0.5]
    assert ended(run).spent == {}


# Lightning

# Both come from the inside of pytorch-lightning 2.6: it uses a class that torch 2.13 gave up, and
# advises more workers for a loader of sixteen rows.
LIGHTNING = [
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\).:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
]


def lightning_trainer(run: assay.Run, tmp_path: Path):
    return pytorch_lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", logger=AssayLogger(run), log_every_n_steps=2,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path / "pl",
    )  # fmt: skip


def lightning_module(seen: list[tuple[int, float]], *, fails_at: int | None = None):
    class Module(pytorch_lightning.LightningModule):
        def __init__(self, lr: float, width: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch, index):
            x, y = batch
            loss = ((self.layer(x).squeeze(-1) - y) ** 2).mean()
            if self.global_step == fails_at:
                raise RuntimeError("planned")
            seen.append((self.global_step, loss.item()))
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, index):
            x, y = batch
            self.log("val/loss", ((self.layer(x).squeeze(-1) - y) ** 2).mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    return Module(lr=0.1, width=8)


def loader():
    x = torch.arange(32.0).reshape(16, 2) / 32
    data = torch.utils.data.TensorDataset(x, x[:, 0])
    return torch.utils.data.DataLoader(data, batch_size=4)


def apply(marks):
    def decorate(function):
        for mark in marks:
            function = mark(function)
        return function

    return decorate


@apply(LIGHTNING)
def test_lightning_logs_into_the_run(tmp_path: Path) -> None:
    """What the module logged, at the Trainer's steps; what it was set to beyond the run is told."""
    seen: list[tuple[int, float]] = []
    with assay.init(config={"lr": 0.1}, study="light") as run:
        trainer = lightning_trainer(run, tmp_path)
        trainer.fit(lightning_module(seen), loader(), loader())
        assert (trainer.logger.name, trainer.logger.version) == ("light", run.id)
        assert trainer.logger.experiment is run
    series = read_metrics(run.path).series
    steps, values, _ = series["train/loss"]
    # Lightning logs after every second step, counted from 0.
    assert list(zip(steps.tolist(), values.tolist(), strict=True)) == seen[1::2]
    assert len(seen) == STEPS
    assert series["val/loss"].values.size == 1
    assert ended(run).status == "completed"
    assert messages(run, "undeclared-config") == ["the module has settings of its own: width = 8"]
    # Checkpoints are Lightning's: none got into the sealed folder of the run.
    assert not list(run.path.rglob("*.ckpt"))
    assert list((tmp_path / "pl").rglob("*.ckpt"))


@apply(LIGHTNING)
def test_a_training_that_lightning_ends_badly_is_told(tmp_path: Path) -> None:
    """The exception gets out and fails the run; what was logged before it stays."""
    seen: list[tuple[int, float]] = []
    run = assay.init()
    trainer, module = lightning_trainer(run, tmp_path), lightning_module(seen, fails_at=4)
    with pytest.raises(RuntimeError, match="planned"), run:
        trainer.fit(module, loader(), loader())
    assert ended(run).status == "failed"
    assert messages(run, "trainer") == ["Lightning ended with 'failed'"]
    assert read_metrics(run.path).series["train/loss"].values.tolist() == [
        loss for _, loss in seen[1::2]
    ]


# Without the libraries


@pytest.mark.parametrize(
    ("module", "hidden", "extra"),
    [
        ("huggingface", ["transformers"], "transformers"),
        ("lightning", ["lightning", "pytorch_lightning"], "lightning"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    module: str, hidden: list[str], extra: str
) -> None:
    """In a fresh interpreter, where the library cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(f"""
            import sys
            sys.modules.update(dict.fromkeys({hidden}))
            from assay.core.errors import ConfigError
            try:
                import assay.core.export.{module}
            except ConfigError as error:
                print(error)
        """)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"pip install 'assay[{extra}]'" in done.stdout


def test_the_lab_imports_none_of_them() -> None:
    """Neither `assay.init` nor any command's module loads a tracker or a trainer."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent("""
            import sys
            import assay, assay.cli.export, assay.cli.foreign, assay.core.export.mlflow
            import assay.core.export.tensorboard, assay.core.export.tabular, assay.core.foreign
            heavy = {"torch", "transformers", "pytorch_lightning", "lightning", "mlflow",
                     "tensorboard", "yaml"}
            print(sorted(heavy & set(sys.modules)))
        """)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
