"""Pretraining: the library's Trainer, told what to record and when to stop."""

import copy
import io
import json
import math
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
    set_seed,
)

from assay.core.engine import RunContext
from assay.core.errors import CheckpointError, ConfigError
from assay.engines import memory
from assay.engines.concepts.collators import Collator, Texts, collator
from assay.engines.concepts.config import PretrainConfig
from assay.engines.concepts.health import not_finite
from assay.engines.concepts.held import Held
from assay.engines.concepts.judged import judge
from assay.engines.concepts.masked import ConceptForMaskedLM, loss_divisor
from assay.engines.concepts.modes import threads, without_bars
from assay.engines.concepts.prepare import Prepared, model_of, prepare
from assay.engines.concepts.reanalysis import MODEL, STORED
from assay.engines.concepts.regularisers import OVER_TEXTS, REGULARISERS
from assay.engines.concepts.tokens import vocabulary_digest

NOTES = "assay.json"
"""In a checkpoint: what this module remembers besides the library's own state."""
SHOW_EVERY_S = 1.0
KEPT = 64
"""Texts whose concepts are stored, for analyses that are made later."""


class Pretrainer(Trainer):
    """The library's Trainer, which also clips by itself, so that the length of every gradient is known.

    Args:
        config: Of the run.
        **kwargs: Of the library's.
    """

    def __init__(self, config: PretrainConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.last: dict[str, float] = {}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The model's own loss; its parts are kept. Processes that train together divide alike."""
        shared = self._shared_divisor(inputs) if self.args.world_size > 1 else None
        if shared is not None and self.config.architecture == "concepts":
            inputs = {**inputs, "divisor": shared}
        outputs = model(**inputs)
        if shared is not None and self.config.architecture == "bert":
            outputs.loss = outputs.loss * loss_divisor("none", inputs["labels"]) / shared
        task = getattr(outputs, "task_loss", None)
        own = outputs.loss.detach() if task is None else task
        self.last = {"train/loss_nats": self.accelerator.reduce(own, reduction="mean").item()}
        parts = getattr(outputs, "concept_losses", None) or {}
        for name, value in parts.items():
            self.last[f"train/{name}_loss"] = self.accelerator.reduce(
                value, reduction="mean"
            ).item()
        return (outputs.loss, outputs) if kwargs.get("return_outputs") else outputs.loss

    def _shared_divisor(self, inputs: dict[str, Any]) -> Tensor:
        mask = inputs.get("decoder_attention_mask", inputs["attention_mask"])
        own = loss_divisor(self.config.time_weight, inputs["labels"], mask, inputs.get("time"))
        shared: Tensor = self.accelerator.reduce(own, reduction="mean")
        return shared

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """One backward pass; gradients are shortened where they are longer than the limit."""
        loss = super().training_step(model, *args, **kwargs)
        limit = self.config.clip or torch.inf
        norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
        self.last["train/grad_norm"] = float(norm)
        return loss


class Recorder(TrainerCallback):
    """Tells the lab what happens, and the Trainer when the lab wants it to stop.

    Args:
        config: Of the run.
        context: Of the run.
        held: Measures the model.
        notes: What an earlier attempt remembers.
    """

    def __init__(
        self, config: PretrainConfig, context: RunContext, held: Held, notes: dict[str, float]
    ) -> None:
        self.config, self.context, self.held, self.notes = config, context, held, notes
        self.trainer: Pretrainer | None = None
        self.shown = 0.0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hide other tokens; the library's loader says so to the texts only where it is the only process."""
        assert self.trainer is not None
        texts = self.trainer.train_dataset
        assert isinstance(texts, Texts)
        texts.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the step; measure, save and stop where it is time."""
        assert self.trainer is not None
        step, last = state.global_step, dict(self.trainer.last)
        if not math.isfinite(last["train/loss_nats"]) and "diverged" not in self.notes:
            self.notes["diverged"] = step
            self.context.event("diverged", f"the training loss is no number at step {step}")
        length = last["train/grad_norm"]
        self._keep_longest("longest", length)
        if 2 * step > self.config.steps:
            self._keep_longest("longest_late", length)
        at_evaluation = step % self.config.eval_interval == 0 or step == self.config.steps
        if at_evaluation:
            last |= self.held.measure(self.trainer.model, "val")
        weights = getattr(self.trainer.model, "loss_weights", None)
        if at_evaluation and weights is not None and weights.raw is not None:
            last |= {f"weight/{name}": value for name, value in weights.weights().items()}
        self.context.log(last, step=step - 1)
        if time.monotonic() - self.shown > SHOW_EVERY_S:
            self.shown = time.monotonic()
            self.context.progress(step, self.config.steps, {"loss": last["train/loss_nats"]})
        if self._asked_to_stop() and step < self.config.steps:
            control.should_training_stop = control.should_save = True
        if at_evaluation and step < self.config.steps:
            control.should_save = True

    def _asked_to_stop(self) -> bool:
        """Of any of the processes: all leave after the same step, or the others would wait for ever."""
        assert self.trainer is not None
        flag = torch.tensor(float(self.context.should_stop()), device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(flag, reduction="sum") > 0)

    def _keep_longest(self, name: str, length: float) -> None:
        """The largest so far; what is no number is larger than any."""
        length = math.inf if math.isnan(length) else length
        self.notes[name] = max(self.notes.get(name, 0.0), length)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hand the library's checkpoint to the lab."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        (folder / NOTES).write_text(json.dumps(self.notes))
        self.context.save_checkpoint(state.global_step, packed(folder))
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def train(configs: Sequence[PretrainConfig], contexts: Sequence[RunContext]) -> None:
    """Train runs one after another; they share the texts, and nothing else."""
    memory.keep()
    for config, context in zip(configs, contexts, strict=True):
        if not context.should_stop():
            # The lab has a display of its own.
            with tempfile.TemporaryDirectory() as folder, threads(context.threads), without_bars():
                pretrain(config, context, Path(folder))


def pretrain(config: PretrainConfig, context: RunContext, folder: Path) -> PreTrainedModel:
    """Train one encoder, from its checkpoint if there is one, to the end or until it is asked to stop.

    The library draws first weights and dropout from the global generator, which is therefore seeded
    here; what is hidden in texts has generators of its own.

    Args:
        config: All settings.
        context: Of the run.
        folder: For the Trainer's files.

    Raises:
        ConfigError: Settings and texts do not go together.
    """
    check_shared(config, PartialState(cpu=context.device == "cpu").num_processes)
    data = prepare(config, context.data_dir)
    if len(data.train) < config.batch:
        raise ConfigError(
            f"The texts to train on must fill a batch of {config.batch}; {config.corpus!r} gives {len(data.train)} of "
            f"{config.seq_len} tokens. Take a longer corpus, a smaller batch, or more train_blocks."
        )
    corrupt = collator(config.objective, data.tokenizer, rate=config.mask_rate, t_min=config.t_min)
    set_seed(context.seeds["init"])
    model = model_of(config, data.tokenizer)
    start, notes = _restored(context, folder)
    held = Held(data, corrupt, config.batch)
    recorder = Recorder(config, context, held, notes)
    trainer = _trainer(config, model, data, corrupt, recorder, context.seeds, folder)
    recorder.trainer = trainer
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=start)
    seconds = time.perf_counter() - began
    done = trainer.state.global_step
    if done >= config.steps:
        first = 0 if start is None else int(start.rpartition("-")[2])
        _finish(config, context, trainer, recorder, seconds / max(1, done - first))
    return model


def check_shared(config: PretrainConfig, processes: int) -> None:
    """Whether processes that share each batch compute what one does.

    Raises:
        ConfigError: They would not, or what is to be done at the end is for one process.
    """
    if processes == 1:
        return
    if config.batch % processes:
        raise ConfigError(
            f"batch must be a multiple of the {processes} processes that share it; got {config.batch}."
        )
    over = sorted(OVER_TEXTS & set(config.concept_losses))
    if over:
        raise ConfigError(
            f"Concept loss {', '.join(over)} is of all texts of a batch together, and {processes} processes have a part "
            "of it each: they would not learn what one learns. Train in one process, or take losses of single "
            f"texts: {', '.join(sorted(set(REGULARISERS) - OVER_TEXTS))}."
        )
    if config.evaluate:
        raise ConfigError(
            f"evaluate is for one process; got {processes}. Leave it empty, and judge the stored model: "
            "assay concepts evaluate OUT/model --tasks …"
        )


def is_first_process() -> bool:
    """Whether this process records; others, which torchrun started beside it, share its batches. Joins them."""
    first: bool = PartialState(cpu=True).is_main_process
    return first


def _trainer(
    config: PretrainConfig,
    model: PreTrainedModel,
    data: Prepared,
    corrupt: Collator,
    recorder: Recorder,
    seeds: Any,
    folder: Path,
) -> Pretrainer:
    optimizer = _optimizer(config, model)
    # The library's "constant" leaves out the warm-up without a word.
    kind = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    schedule = get_scheduler(kind, optimizer, config.warmup, config.steps)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch // PartialState().num_processes,
        max_grad_norm=0.0,
        bf16=config.precision == "bfloat16",
        seed=seeds["init"],
        data_seed=seeds["data"],
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        ddp_find_unused_parameters=False,
        use_cpu=recorder.context.device == "cpu",
    )
    trainer = Pretrainer(
        config,
        model=model,
        args=arguments,
        train_dataset=Texts(data.train, seeds["data"]),
        data_collator=corrupt,
        processing_class=data.tokenizer,
        optimizers=(optimizer, schedule),
        callbacks=[recorder],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _optimizer(config: PretrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW: matrices decay, biases and norms do not, and learned loss weights have a rate of their own."""
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "plain": [], "weighting": []}
    for name, parameter in model.named_parameters():
        weighs = name.startswith("loss_weights.")
        groups["weighting" if weighs else "decay" if parameter.dim() > 1 else "plain"].append(
            parameter
        )
    made = [
        {"params": groups["decay"], "weight_decay": config.weight_decay},
        {"params": groups["plain"], "weight_decay": 0.0},
        {"params": groups["weighting"], "weight_decay": 0.0, "lr": config.weighting_lr},
    ]
    return torch.optim.AdamW([g for g in made if g["params"]], lr=config.lr, fused=True)


def _restored(context: RunContext, folder: Path) -> tuple[str | None, dict[str, float]]:
    """Unpack the last checkpoint; where, and what was remembered."""
    found = context.load_checkpoint()
    if found is None:
        return None, {}
    place = folder / f"checkpoint-{found[0]}"
    try:
        unpacked(io.BytesIO(found[1]), place)
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"The state to go on from must be the whole archive that a run saved; this one of {len(found[1])} bytes "
            f"cannot be unpacked: {error}. Begin anew in another folder, or remove the state (OUT/state.bin)."
        ) from error
    return str(place), json.loads((place / NOTES).read_text())


def _finish(
    config: PretrainConfig,
    context: RunContext,
    trainer: Pretrainer,
    recorder: Recorder,
    seconds_per_step: float,
) -> None:
    """Measure and judge the model, and store it with its tokenizer."""
    model: Any = trainer.model
    held = recorder.held
    found = held.measure(model, "test") | held.guessed("test")
    found |= held.probe(model, prefix=config.objective == "prefix")
    found |= held.untrained(config, context.seeds["init"], model.device)
    found |= {
        "train/grad_norm_max": recorder.notes["longest"],
        "train/grad_norm_max_late": recorder.notes["longest_late"],
        "train/blocks": float(len(held.data.train)),
        "model/parameters": float(sum(p.numel() for p in model.parameters())),
        "speed/seconds_per_step": seconds_per_step,
    }
    tokenizer = held.data.tokenizer
    model.config.vocabulary_digest = vocabulary_digest(tokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        # The cached one stays as it is; what is stored knows where texts must be cut.
        stored = copy.deepcopy(tokenizer)
        stored.model_max_length = config.seq_len
        stored.save_pretrained(folder)
        # Of weights that are no numbers there is nothing to judge; the run ends as one that diverged.
        if trainer.args.process_index == 0 and not not_finite(model):
            found |= judge(
                config,
                folder,
                tokenizer,
                seed=context.seeds["init"],
                data_dir=context.data_dir,
                device=context.device,
            )
        context.save(MODEL, packed(folder))
    if isinstance(model, ConceptForMaskedLM):
        kept = held.kept(model, KEPT)
        if kept["concepts"].isfinite().all():
            context.save(STORED, save_tensors(kept))
    context.summary(found)
    context.spent(steps=config.steps, tokens=float(config.steps * config.batch * config.seq_len))


def packed(folder: Path) -> bytes:
    """A folder's files as one zip archive, the same bytes for the same files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.writestr(zipfile.ZipInfo(file.name), file.read_bytes())
    return out.getvalue()


def unpacked(archive: Path | io.BytesIO, folder: Path) -> None:
    """The files of a zip archive that `packed` made, in a folder."""
    with zipfile.ZipFile(archive) as found:
        found.extractall(folder)
