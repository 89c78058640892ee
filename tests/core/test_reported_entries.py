"""What a log reports: entries with dates, verdicts, commands, settings, values, paths, links."""

from assay.core.reported.document import parse
from assay.core.reported.entries import entries

LOG = """# Experiment Log

**Date:** 2026-01-14

## 2026-01-30 04:41 UTC — SSSL (FP, disjoint batches)
- config: `config/sssl-fp`
- command: `FORCE=1 target/release/local-testnet start --num-clients 4 --tiers 0,1,1,1 --tui false`
- sign agreement overall 0.6952; MLP prefix 0.5156
- counts: total_all=443,619,072; steps=13

## Experiment E8: ~777 baseline — FAILED

```bash
uv run python -m src.train \\
  --run-name baseline --d-model 7 \\
  --seed 42
```

- Outputs:
  - `results/runs/baseline/summary.json`
  - [report](run_reports/e8.md), W&B https://wandb.example/runs/qjs0xesr
- 3 of 5 seeds; accuracy 59.2±0.4%, rank 5 / 128

| Run | Scores |
|---|---|
| a | **MRPC:** 82.2% <br> **QQP:** 61.5% |

### Analysis

**Verdict: PARTIAL SUCCESS.** Proves little.
"""


def test_entries():
    """One entry a heading, with everything that stands under it."""
    log, first, second, third = entries(parse(LOG, "log.md"))
    assert (log.title, log.date, log.standing) == ("Experiment Log", "2026-01-14", "reported")
    assert (first.line, first.date, first.under) == (5, "2026-01-30 04:41", ("Experiment Log",))
    assert first.commands == [
        "FORCE=1 target/release/local-testnet start --num-clients 4 --tiers 0,1,1,1 --tui false"
    ]
    assert first.settings["--tiers"] == "0,1,1,1"
    assert first.settings["config"] == "config/sssl-fp"
    assert [(v.name, v.value, v.line) for v in first.values] == [
        ("sign agreement overall", 0.6952, 8),
        ("MLP prefix", 0.5156, 8),
        ("counts total_all", 443619072, 9),
        ("steps", 13, 9),
    ]
    assert (second.verdict, second.tables) == ("FAILED", 1)
    assert second.commands == [
        "uv run python -m src.train --run-name baseline --d-model 7 --seed 42"
    ]
    assert second.settings["--seed"] == "42"
    assert second.paths == ["results/runs/baseline/summary.json"]
    assert [link.target for link in second.links] == [
        "run_reports/e8.md",
        "https://wandb.example/runs/qjs0xesr",
    ]
    assert (third.verdict, third.under) == (
        "PARTIAL SUCCESS",
        ("Experiment Log", "Experiment E8: ~777 baseline — FAILED"),
    )


def test_values():
    """Counts have their n, means their spread, cells of several lines their names."""
    second = entries(parse(LOG))[2]
    values = {v.name: v for v in second.values}
    assert [(v.value, v.of) for v in second.values if v.of] == [(3, 5), (5, 128)]
    assert (values["accuracy"].value, values["accuracy"].spread) == (59.2, 0.4)
    assert (values["accuracy"].unit, values["a · Scores, QQP"].value) == ("%", 61.5)
    assert all(LOG.split("\n")[v.line - 1][v.column - 1 :].lstrip("*").startswith(v.printed) for v in second.values)  # fmt: skip
