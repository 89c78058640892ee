"""The C++ libraries of the engines, which one loader loads."""

import pytest

from assay.core.errors import ProvenanceError
from assay.engines.addition import fused as addition
from assay.engines.swarm import fused as swarm


@pytest.mark.parametrize("fused", [addition, swarm], ids=["addition", "swarm"])
def test_a_stale_library_is_refused(fused, monkeypatch):
    """Built from other sources than those beside it: an error that names `make setup`."""
    monkeypatch.setattr("assay.engines.library.source_digest", lambda folder: "0123456789abcdef")
    fused._load.cache_clear()
    with pytest.raises(ProvenanceError, match="make setup"):
        fused.describe()
    monkeypatch.undo()
    fused._load.cache_clear()
    assert fused.describe().startswith("fused")
