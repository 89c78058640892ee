import json
import pickle

import pytest
import torch
from safetensors.torch import save

from assay.core.config import to_plain
from assay.core.errors import CheckpointError
from assay.engines.addition.checkpoint import dump, dump_model, load_model
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.model import Parameters


@pytest.fixture
def made():
    config = AdditionConfig(d_model=8, d_ff=28)
    return config, Parameters.initial(config, [4])


def test_weights_survive_bit_for_bit(tmp_path, made):
    """What is saved is what is loaded; equal content has equal bytes."""
    config, parameters = made
    content = dump_model(config, parameters, 0, {"step": 7})
    assert content == dump_model(config, parameters, 0, {"step": 7})
    path = tmp_path / "best.safetensors"
    path.write_bytes(content)
    loaded = load_model(path)
    assert loaded.config == config
    assert loaded.about["step"] == 7
    assert torch.equal(loaded.parameters.rows_SP, parameters.rows_SP)


def refused(path, content, says):
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "\n\n" not in str(caught.value)


def test_files_that_do_not_fit_are_named_with_the_reason(tmp_path, made):
    """Wrong shapes, missing or unknown tensors, unknown settings, other files."""
    config, parameters = made
    path = tmp_path / "x.safetensors"
    good = {name: view[0].clone() for name, view in parameters.named().items()}
    plain = to_plain(config)

    def file(tensors, settings=plain, kind="model"):
        return dump(tensors, {"kind": kind, "config": settings})

    refused(
        path, file({**good, "ln_f.weight": torch.zeros(9)}), r"ln_f.weight .* got float32 \[9\]"
    )
    refused(path, file({k: v for k, v in good.items() if k != "ln_f.bias"}), "missing: ln_f.bias")
    refused(path, file({**good, "extra": torch.zeros(1)}), "unknown: extra")
    refused(path, file({**good, "ln_f.weight": torch.zeros(8, dtype=torch.int64)}), "int64")
    broken = torch.full((8,), float("nan"))
    refused(path, file({**good, "ln_f.weight": broken}), "NaN or infinite")
    refused(path, file(good, {**plain, "d_modle": 3}), "unknown key 'd_modle'")
    refused(path, file(good, {**plain, "d_ff": 14}), "must be floating point of shape")
    refused(path, file(good, kind="training state"), "weights are needed")
    refused(path, save(good), "no 'assay' metadata")
    refused(path, save(good, metadata={"assay": json.dumps({"format": "x"})}), "format must be")
    refused(path, b"no checkpoint", "must be a safetensors file")
    refused(path, b"", "must be a safetensors file")
    refused(path, file(good)[:-10], "must be a safetensors file")


def test_a_missing_file_is_named(tmp_path):
    """The path and the way out, not a traceback."""
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(tmp_path / "none.safetensors")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was run",))


def test_pickles_are_never_run(tmp_path):
    """Code inside a .pt or pickle file is refused, not executed."""
    path = tmp_path / "bomb.pt"
    torch.save({"model_state": Bomb(), "model_config": {}}, path)
    with pytest.raises(CheckpointError, match="only tensors and plain values"):
        load_model(path)
    refused(path, pickle.dumps(Bomb()), "must be a safetensors file")
