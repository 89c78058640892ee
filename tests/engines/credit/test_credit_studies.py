"""The studies in `studies/credit`: each is valid at every scale, and starts at the largest."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from credit_helpers import Context

from assay.core.config import build
from assay.core.plan import expand
from assay.core.study import load_scales, load_study
from assay.engines.credit import frozen, lq, train
from assay.engines.credit.cohort import check_cohort

STUDIES = sorted((Path(__file__).parents[3] / "studies" / "credit").glob("*.toml"))
WORK = {"train": train.Training, "frozen": frozen.Frozen, "lq": lq.Toy}
SCALES = [(path, scale) for path in STUDIES for scale in (None, *load_scales(path))]


def cohorts(study):
    """Cohort → configurations of its runs."""
    found = {}
    for planned in expand(study):
        config = build(study.task.config, planned.config, where=planned.arm)
        found.setdefault(planned.cohort, []).append(config)
    return found


@pytest.mark.parametrize(("path", "scale"), SCALES, ids=lambda value: getattr(value, "stem", value))
def test_a_study_is_valid_at_every_scale(path, scale):
    """Its configurations can be built, and those of a cohort can be stacked."""
    study = load_study(path, scale)
    assert study.claims
    assert study.table.scale
    for configs in cohorts(study).values():
        check_cohort(configs, [Context()], study.task.stackable)


def test_every_study_has_a_smoke_a_ci_and_a_full_scale():
    """And comparisons are judged on three seeds at least, but for the smoke and ci runs."""
    for path in STUDIES:
        assert {"smoke", "ci", "full"} <= set(load_scales(path))
        for scale in (None, "full"):
            assert len(load_study(path, scale).seeds) >= 1
            assert len({tuple(p.seeds.items()) for p in expand(load_study(path, scale))}) >= 3


# S4's S1 and S2, gamma and rho above DFA's, as it printed them.
ABOVE_DFA = [
    ("scalar-tgw1", "test/gamma", 0.079),
    ("scalar-tgw4", "test/gamma", 0.087),
    ("vector", "test/gamma", -0.100),
    ("scalar-tgw1", "test/rho", 0.014),
    ("scalar-tgw4", "test/rho", 0.007),
    ("vector", "test/rho", 0.005),
]
ROUNDED = 0.0015  # three printed values, half a unit of their last digit each


@pytest.mark.parametrize(("arm", "metric", "above"), ABOVE_DFA)
def test_reported_rows_agree_with_the_reported_differences(arm, metric, above):
    """A row of the online study mistyped from S4 would not give S4's own S1 and S2."""
    study = load_study(next(path for path in STUDIES if path.stem == "online"), None)
    reported = {(row.arm, row.metric): row.value for row in study.reported}
    assert reported[arm, metric] - reported["dfa", metric] == pytest.approx(above, abs=ROUNDED)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_full_scale_starts(path):
    """One step of every kind of arm, on the study's images where there is a data folder.

    On a frozen net it is the estimator's first step, and then one batch's local steps and line searches.
    """
    study = load_study(path, "full")
    context, seen = Context(), set()
    context.data_dir = Path(os.environ["ASSAY_DATA"]) if "ASSAY_DATA" in os.environ else None
    for configs in cohorts(study).values():
        config = configs[0]
        kind = tuple(
            getattr(config, n, None) for n in ("method", "depth", "width", "code", "directions")
        )
        if kind in seen:
            continue
        seen.add(kind)
        if context.data_dir is None and getattr(config, "data", "ladder") != "ladder":
            # The nets and batches are those of the study all the same.
            config = replace(config, data="digits", train_size=0, augment=False)
            if hasattr(config, "exploit_batch"):
                config = replace(config, exploit_batch=64)
        if study.task.name == "frozen":
            config = replace(config, exploit_batches=1)
        work = WORK[study.task.name]([config], [context])
        before = work.step = getattr(work, "net_steps", 0)
        work.advance()
        assert work.step == before + 1
        assert work.loss_S.isfinite().all()
        if study.task.name == "frozen":
            (found,) = work.exploited()
            assert found
            assert all(math.isfinite(value) for value in found.values())
