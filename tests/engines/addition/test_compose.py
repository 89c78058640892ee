"""Dense weights against the formulas, written out by hand."""

import math

import torch

from assay.engines.addition.block import rotary
from assay.engines.addition.compose import dense_weights, flat, shape_of, sinusoids
from assay.engines.addition.config import AdditionConfig
from assay.engines.addition.ladder import ladder
from assay.engines.addition.model import Parameters


def composed(config, seed=1):
    parameters = Parameters.initial(config, [seed]).to("cpu", torch.float64)
    noise = torch.randn(parameters.rows_SP.shape, generator=torch.Generator().manual_seed(2))
    parameters.rows_SP += 0.1 * noise
    named = {name: view[0] for name, view in parameters.named().items()}
    made = dense_weights(config, parameters.layout, parameters.named())
    assert flat(made).shape == (1, shape_of(config).dense_size)
    return named, {name: view[0] for name, view in made.items()}


def test_low_rank_and_frozen_terms():
    """A @ B + W_fixed; query, key and value side by side."""
    config = AdditionConfig(qkv_rank=3, ffn_rank=2, pos_rank=3, fixed_full_rank_attn=True)
    p, made = composed(config)
    whole = p["blocks.0.attn.qkv.A"] @ p["blocks.0.attn.qkv.B"] + p["blocks.0.attn.qkv.W_fixed"]
    for name, part in zip(("query", "key", "value"), whole.chunk(3, 1), strict=True):
        torch.testing.assert_close(made[name], part)
    torch.testing.assert_close(made["up"], p["blocks.0.mlp.fc1.A"] @ p["blocks.0.mlp.fc1.B"])
    torch.testing.assert_close(made["position"], p["pos_emb.A"] @ p["pos_emb.B"])
    assert torch.equal(made["head"], made["token"])


def test_share_a_tie_kv():
    """h = x A; q = h Bq; k = v = h Bkv."""
    p, made = composed(ladder()["456"])
    shared = p["blocks.0.attn.qkv_A"]
    torch.testing.assert_close(made["query"], shared @ p["blocks.0.attn.qkv_Bq"])
    torch.testing.assert_close(made["key"], shared @ p["blocks.0.attn.qkv_Bkv"])
    assert torch.equal(made["key"], made["value"])


def test_the_record_is_made_of_36_numbers():
    """Arc, rotated key, value and output of the query, rotated down projection, one norm."""
    p, made = composed(ladder()["36"])
    amplitude, start, stride = (
        float(p[f"token_emb.{n}"]) for n in ("amplitude", "start", "stride")
    )
    for digit in range(10):
        angle = start + digit * stride
        arc = [amplitude * math.cos(angle), amplitude * math.sin(angle), 0.0]
        torch.testing.assert_close(made["token"][digit].tolist(), arc)
    query = p["blocks.0.attn.q.weight"]
    cos, sin = (f(float(p["blocks.0.attn.key_angle"])) for f in (math.cos, math.sin))
    turn = torch.zeros(4, 4, dtype=torch.float64)
    for i in (0, 2):
        turn[i, i], turn[i, i + 1], turn[i + 1, i], turn[i + 1, i + 1] = cos, sin, -sin, cos
    torch.testing.assert_close(made["key"], query @ turn)
    assert torch.equal(made["value"], query)
    assert torch.equal(made["out"], query.t())
    cos, sin = (f(float(p["blocks.0.mlp.down_angle"])) for f in (math.cos, math.sin))
    up = p["blocks.0.mlp.fc1.weight"]
    torch.testing.assert_close(made["down"][0], up[:, 0] * cos - up[:, 1] * sin)
    torch.testing.assert_close(made["down"][1], up[:, 0] * sin + up[:, 1] * cos)
    assert torch.equal(made["norm1"], made["norm_f"])
    assert torch.equal(made["head_norm"][0], made["head_norm"][1])
    assert not made["position"].any()


def test_rotation_depends_on_the_distance_alone():
    """Rotary positions: the product of a query and a key that are turned by their positions."""
    shape = shape_of(ladder()["36"])
    cos, sin = rotary(shape, 10)
    speeds = [1.0, 3.0**-0.5]
    for pair, speed in enumerate(speeds):
        torch.testing.assert_close(float(cos[7, pair]), math.cos(7 * speed))
        torch.testing.assert_close(float(sin[7, pair]), math.sin(7 * speed))


def test_sinusoids_are_those_of_the_paper():
    """Sine at even, cosine at odd features; wavelengths from 2 pi to 10,000 times that."""
    table = sinusoids(33, 8)
    torch.testing.assert_close(float(table[5, 0]), math.sin(5))
    torch.testing.assert_close(float(table[5, 1]), math.cos(5))
    torch.testing.assert_close(float(table[5, 6]), math.sin(5 / 10_000 ** (6 / 8)))


def test_positions_beyond_the_prompt_are_counted_but_not_used():
    """35 rows: the block sees 33; the others get no gradient."""
    config = ladder()["777-f14"]
    p, made = composed(config)
    assert p["pos_emb.weight"].shape == (35, 7)
    assert torch.equal(made["position"], p["pos_emb.weight"][:33])
