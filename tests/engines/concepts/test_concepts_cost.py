"""The cost of an encoder by the length of its text."""

import pytest
from concepts_helpers import Context

from assay.engines.concepts.config import CostConfig
from assay.engines.concepts.cost import encoder, measure
from assay.engines.concepts.engine import ENGINE

SMALL = {"hidden": 32, "inner": 32, "slots": 4, "repeats": 2}


@pytest.mark.parametrize("kind", ["concepts", "bidirectional", "transformer"])
def test_what_is_measured_is_declared(kind):
    context = Context(1)
    measure([CostConfig(**SMALL, encoder=kind, tokens=16)], [context])
    names = {name for name in context.final if not name.startswith("spent/")}
    assert names == set(ENGINE.tasks["cost"].metrics)
    assert 0 < context.final["cost/seconds_min"] <= context.final["cost/seconds"]
    assert context.final["spent/repeats"] == 2


def test_encoders_are_of_one_width_and_depth():
    made = {
        kind: encoder(CostConfig(**SMALL, encoder=kind))
        for kind in ("concepts", "bidirectional", "transformer")
    }
    assert len(made["concepts"].layers) == len(made["transformer"].encoder.layer) == 2
    assert made["bidirectional"].num_parameters() > made["concepts"].num_parameters()


@pytest.mark.parametrize("settings", [{"tokens": 0}, {"repeats": 0}, {"hidden": 100}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        CostConfig(**SMALL | settings)
