"""`assay addition` on trained models: evaluate, predict, verify, export, attack; and count."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from assay.cli.addition_settings import config_from
from assay.core.errors import CheckpointError, DataError

Json = Annotated[bool, Parameter(name="--json", negative="")]
SAMPLES = 10
"""Failures that are shown."""


def load(path: Path) -> Any:
    """A checkpoint, or the best one of a run's folder."""
    from assay.engines.addition.checkpoint import load_model

    if path.is_dir():
        if not (path / "best.safetensors").exists():
            raise CheckpointError(
                f"{path}: the folder must hold best.safetensors; it does not. Give the folder of "
                "one run (OUT/seed-N), or a checkpoint file."
            )
        path = path / "best.safetensors"
    return load_model(path)


def evaluate(
    checkpoint: Annotated[list[Path], Parameter(consume_multiple=True)], /, *, json_: Json = False
) -> None:
    """Evaluate checkpoints on the ten public test sets of 10,000 pairs, and locate the failures.

    Args:
        checkpoint: Files or folders: best.safetensors or last.safetensors of a run, the run's
            folder (its best), or a released .pt file.
        json_: Print JSON: the keys of the source's evaluate_checkpoints.py, and the failures.
    """
    from assay.core.config import to_plain
    from assay.engines.addition.layout import num_parameters

    results = []
    for path in checkpoint:
        model = load(path)
        report, failures = _judge(model)
        results.append(
            {
                "model": f"{num_parameters(model.config)}-parameter adder",
                "checkpoint": str(path),
                "parameters": num_parameters(model.config),
                "config": to_plain(model.config),
                "training": dict(model.about),
                "multi_seed_validation": report,
                "failures": failures,
            }
        )
        if not json_:
            _tell(path, num_parameters(model.config), report, failures)
    if json_:
        print(json.dumps(results, indent=1))


def _judge(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results on the public test sets, and where the wrong pairs are wrong."""
    import torch

    from assay.engines.addition.attack import carry_class, chain_below
    from assay.engines.addition.backend import Judgement, choose
    from assay.engines.addition.config import PUBLIC_TEST_SEEDS
    from assay.engines.addition.data import holdout
    from assay.engines.addition.evaluate import predict, report, summarise, total

    backend = choose(model.config, device="cpu", threads=1)
    scores, by_digit, by_chain = {}, [0] * 11, [0] * 11
    samples: list[dict[str, int]] = []
    for seed in PUBLIC_TEST_SEEDS:
        pairs = holdout(seed, 5000, 10_000).test
        judged: Judgement = backend.judge(model.parameters, 0, pairs)
        scores[seed] = summarise(model.config, judged)
        places = torch.nonzero(judged.wrong_N)[:, 0].tolist()
        a, b = pairs.a[places].numpy(), pairs.b[places].numpy()
        for i, place, carries in zip(range(len(places)), places, carry_class(a, b), strict=True):
            bits = int(judged.wrong_N[place])
            first = (bits & -bits).bit_length() - 1
            by_digit[first] += 1
            by_chain[chain_below(int(carries), first)] += 1
            if len(samples) < SAMPLES:
                answer = predict(model, int(a[i]), int(b[i]))
                truth = int(a[i] + b[i])
                samples.append(
                    {"A": int(a[i]), "B": int(b[i]), "prediction": answer, "ground_truth": truth}
                )
    whole = total(list(scores.values()))
    found = {
        "wrong_digits_by_place": list(whole.wrong_digits),
        "first_wrong_digit_by_place": by_digit,
        "carry_chain_at_first_wrong_digit": by_chain,
        "failure_samples": samples,
    }
    return report(scores) | {"token_accuracy": whole.token_accuracy}, found


def _tell(
    path: Path, parameters: int, report: Mapping[str, Any], failures: Mapping[str, Any]
) -> None:
    print(
        f"{path}: {parameters} parameters, exact match {report['aggregate_exact_match']:.5f}, "
        f"{report['aggregate_errors']} errors in {report['total_examples']}"
    )
    sets = ", ".join(f"{seed}: {one['errors']}" for seed, one in report["per_seed"].items())
    print(f"  errors by test set: {sets}")
    if not report["aggregate_errors"]:
        return
    for title, key in (
        ("first wrong digit, by place (units first)", "first_wrong_digit_by_place"),
        ("carries in a row that arrive there", "carry_chain_at_first_wrong_digit"),
    ):
        counts = ", ".join(f"{i}: {n}" for i, n in enumerate(failures[key]) if n)
        print(f"  {title}: {counts}")
    for sample in failures["failure_samples"]:
        print(
            f"  {sample['A']} + {sample['B']} = {sample['ground_truth']}, "
            f"it says {sample['prediction']}"
        )


def predict(checkpoint: Path, a: str, b: str, /, *, json_: Json = False) -> None:
    """Let a checkpoint add two numbers, greedily, digit by digit.

    Args:
        checkpoint: A checkpoint file, or a run's folder.
        a: First operand, 0 to 9999999999.
        b: Second operand.
        json_: Print JSON.
    """
    operands = [_operand(name, text) for name, text in (("A", a), ("B", b))]
    from assay.engines.addition.evaluate import predict as ask

    answer, truth = ask(load(checkpoint), *operands), sum(operands)
    if json_:
        fields: dict[str, int | bool] = {"A": operands[0], "B": operands[1]}
        fields |= {"prediction": answer, "ground_truth": truth, "correct": answer == truth}
        print(json.dumps(fields))
    else:
        verdict = "correct" if answer == truth else f"wrong, it is {truth}"
        print(f"{operands[0]} + {operands[1]} = {answer} ({verdict})")


def _operand(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text.lstrip("0")) <= 10):
        raise DataError(
            f"operand {name} must be a whole number from 0 to 9999999999 in digits; got {text!r}. "
            "The model has exactly 10 digit positions an operand, and no sign or point."
        )
    return int(text)


def verify(
    path: Path,
    /,
    *,
    run_code: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Judge a model by the leaderboard's protocol: 10 edge cases and 10,000 pairs, 99 % to pass.

    Autoregressive and one pair at a time, through build_model() and add() of the submission that
    `export` writes. The edge cases are ours; the board's own file decides. Exit code 1 below 99 %.

    Args:
        path: A checkpoint, a run's folder, or a submission (.py).
        run_code: A submission is a program. This flag says that you trust it and want it run.
        quiet: No progress lines.
    """
    from assay.engines.addition import leaderboard

    if path.suffix == ".py":
        if not run_code:
            raise DataError(
                f"{path}: a submission is a program, and verifying it runs it; --run-code was not "
                "given. Read the file, and add --run-code if you trust it."
            )
        text = path.read_text()
    else:
        text = leaderboard.source(load(path))

    def progress(done: int) -> None:
        if not quiet and done % 1000 == 0:
            print(f"{done} pairs", file=sys.stderr)

    found = leaderboard.verify(leaderboard.module_of(text), progress)
    bar = "reaches 99 %" if found.passes else "is below 99 %"
    print(
        f"{path}: {found.cases - len(found.failures)} of {found.cases} right "
        f"({found.accuracy:.5f}), {found.edge_failures} of {len(leaderboard.EDGE_CASES)} edge cases "
        f"wrong: {bar}. {found.parameters} trained parameters, counted in unique storage."
    )
    for a, b, answer in found.failures[:SAMPLES]:
        print(f"  {a} + {b} = {a + b}, it says {answer}")
    if not found.passes:
        raise SystemExit(1)


def export(checkpoint: Path, out: Path, /) -> None:
    """Write a checkpoint as a self-contained submission: one file, PyTorch only, weights inside.

    Args:
        checkpoint: A checkpoint, or a run's folder.
        out: The Python file to write; it must not exist.
    """
    from assay.engines.addition.layout import num_parameters
    from assay.engines.addition.leaderboard import source

    model = load(checkpoint)
    try:
        with out.open("x") as file:
            file.write(source(model))
    except OSError as error:
        raise DataError(
            f"{out}: the submission must go into a new file in a folder that you may write to; "
            f"{error.strerror}. Choose another name."
        ) from error
    print(
        f"{out}: {num_parameters(model.config)} trained parameters; build_model(), add(model, a, b)"
    )


def attack(
    checkpoint: Path, /, *, pairs_per_class: int = 100, seed: int = 0, json_: Json = False
) -> None:
    """Try all 1,024 carry classes, then search for counterexamples. Exit code 1 if one is found.

    Args:
        checkpoint: A checkpoint, or a run's folder.
        pairs_per_class: Pairs of each carry class.
        seed: Of the pairs.
        json_: Print JSON, with the errors of every class.
    """
    from dataclasses import asdict

    from assay.engines.addition.attack import attack as run_attack
    from assay.engines.addition.backend import choose

    if pairs_per_class < 1 or seed < 0:
        raise DataError(
            f"pairs_per_class must be at least 1 and seed at least 0; got {pairs_per_class} and "
            f"{seed}."
        )
    model = load(checkpoint)
    backend = choose(model.config, device="cpu", threads=1)
    found = run_attack(model.parameters, backend, pairs_per_class=pairs_per_class, seed=seed)
    if json_:
        print(json.dumps(asdict(found)))
    else:
        errors = sum(found.errors_by_class)
        tried = len(found.errors_by_class) * found.pairs_per_class
        print(
            f"{checkpoint}: {errors} errors in {tried} pairs of all {len(found.errors_by_class)} "
            f"carry classes; {found.broken_classes} classes have one. {len(found.counterexamples)} "
            f"counterexamples in {found.pairs} pairs, search included."
        )
        for a, b in found.counterexamples[:SAMPLES]:
            print(f"  {a} + {b} (carries {_carries(a, b)})")
    if found.counterexamples:
        raise SystemExit(1)


def _carries(a: int, b: int) -> str:
    """The carry pattern, highest place first."""
    carry, bits = 0, ""
    for place in range(10):
        carry = int(a // 10**place % 10 + b // 10**place % 10 + carry >= 10)
        bits = f"{carry}{bits}"
    return bits


def count(
    *,
    set_: Annotated[
        list[str] | None, Parameter(name="--set", consume_multiple=True, negative="")
    ] = None,
    json_: Json = False,
) -> None:
    """Count the trained parameters of every public model, or of one configuration.

    Counted from the tensors: each element of each storage once; frozen buffers apart.

    Args:
        set_: Settings as name=value; without them, the whole ladder.
        json_: Print JSON.
    """
    from rich.console import Console
    from rich.table import Table

    from assay.engines.addition.ladder import ladder
    from assay.engines.addition.model import Parameters
    from assay.engines.addition.model import count as unique

    rows: dict[str, dict[str, int]] = {}
    for name, config in ({"this": config_from(set_)} if set_ else ladder()).items():
        made = Parameters.initial(config, [0])
        views = made.named()
        parts: dict[str, int] = {}
        for slot in made.layout.slots:
            tensors = {slot.name: views[slot.name]}
            parts[slot.component] = parts.get(slot.component, 0) + unique(tensors)
        trained = {slot.name: views[slot.name] for slot in made.layout.slots}
        frozen = {slot.name: views[slot.name] for slot in made.layout.frozen}
        rows[name] = {**parts, "total": unique(trained), "frozen": unique(frozen)}
    if json_:
        print(json.dumps(rows, indent=1))
        return
    columns = ["tokens", "positions", "norms", "qkv", "qk norm", "out", "ffn", "total", "frozen"]
    table = Table(box=None, pad_edge=False)
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    for name, parts in rows.items():
        table.add_row(name, *(str(parts.get(column, 0)) for column in columns))
    Console().print(table)
