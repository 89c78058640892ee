"""Laws of the measures of a trained encoder, against formulas written otherwise, in float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from assay.engines.concepts.analysis import analyse, collect, input_dependence, measure
from assay.engines.concepts.analysis_figure import draw
from assay.engines.concepts.analysis_metrics import LEVELS, METRICS, STATIC, level, under
from assay.engines.concepts.attention_use import AttentionUse
from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.models import ConceptForMaskedLM, ConceptModel


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def turned(size):
    return torch.linalg.qr(drawn(size, size, seed=9)).Q


def small(**settings):
    sizes = {
        "vocab_size": 50, "concept_num": 5, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 8, "max_position_embeddings": 16, "initializer_range": 0.3,
    }  # fmt: skip
    return ConceptConfig(**(sizes | settings))


def model(kind=ConceptModel, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(small(**settings)).double()


def batch(texts, tokens, seed=0, padding=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 50, (texts, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if padding:
        junk = torch.randint(4, 50, (texts, padding), generator=generator)
        ids, mask = torch.cat([ids, junk], 1), torch.cat([mask, torch.zeros_like(junk)], 1)
    return {"input_ids": ids, "attention_mask": mask}


def spectrum(matrix):
    """By eigenvalues of the smaller product, not by a singular value decomposition."""
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return np.sqrt(np.clip(np.linalg.eigvalsh(matrix @ matrix.T), 0, None))[::-1]


def of_spectrum(values):
    shares, energy = values / values.sum(), values**2 / (values**2).sum()
    dims = next(k for k in range(1, len(values) + 1) if energy[:k].sum() >= 0.95)
    return {
        "rank_{}": values.sum() / values.max(),
        "rank_{}_share": values.sum() / values.max() / len(values),
        "entropy_rank_{}": math.exp(-sum(p * math.log(p) for p in shares)),
        "entropy_rank_{}_share": math.exp(-sum(p * math.log(p) for p in shares)) / len(values),
        "dims95_{}": dims,
        "top1_share_{}": energy[0],
        "top5_share_{}": energy[:5].sum(),
        "dominance_{}": values.max() / values.sum(),
    }


@pytest.mark.parametrize("shape", [(7, 6, 9), (5, 9, 6), (20, 3, 4)])
def test_spectral_measures_are_their_formulas(shape):
    """Of the mean, of single texts and of what texts change; wide and high matrices."""
    concepts = drawn(*shape) + 2 * drawn(*shape[1:], seed=1)
    found, x = measure(concepts), concepts.numpy()
    for part, matrices in (("mean", [x.mean(0)]), ("text", x), ("input", x - x.mean(0))):
        each = [of_spectrum(spectrum(matrix)) for matrix in matrices]
        for name in each[0]:
            wanted = np.mean([values[name] for values in each])
            assert found[name.format(part)] == pytest.approx(wanted, rel=1e-9), (name, part)


def test_input_dependence_is_its_formula():
    """Variance within slots by the variance around the mean of all, loop by loop."""
    x = (drawn(6, 4, 5) + drawn(4, 5, seed=1) + 3).numpy()
    whole, energy, slots = input_dependence(torch.tensor(x))
    grand = x.mean((0, 1))
    within = [np.mean([((x[t, c] - x[:, c].mean(0)) ** 2).sum() for t in range(6)]) for c in range(4)]  # fmt: skip
    total = np.mean([((x[t, c] - grand) ** 2).sum() for t in range(6) for c in range(4)])
    square = np.mean([(x[t, c] ** 2).sum() for t in range(6) for c in range(4)])
    assert whole == pytest.approx(np.mean(within) / total, rel=1e-9)
    assert energy == pytest.approx(np.mean(within) / square, rel=1e-9)
    for c in range(4):
        own = np.mean([((x[t, c] - grand) ** 2).sum() for t in range(6)])
        assert slots[c] == pytest.approx(within[c] / own, rel=1e-9)


def test_the_trap_of_rank():
    """128 constant slots at right angles: everything the source asked for is best, and nothing is the text's."""
    slots = turned(256)[:128] * 16
    found = measure(slots.expand(6, -1, -1))
    assert found["rank_mean"] == pytest.approx(128, rel=1e-9)
    assert found["rank_text"] == pytest.approx(128, rel=1e-9)
    assert found["entropy_rank_mean"] == pytest.approx(128, rel=1e-9)
    assert found["dims95_mean"] == 122
    for name in ("rank_mean", "rank_mean_share", "dims95_mean", "cosine_mean", "cosine_max",
                 "uniformity", "dominance_mean", "participation_share"):  # fmt: skip
        assert level(name, found[name], slots=128) == "good", name
    assert found["input_dependence"] == pytest.approx(0, abs=1e-30)
    assert found["input_energy"] == pytest.approx(0, abs=1e-30)
    assert found["rank_input"] == found["entropy_rank_input"] == found["dims95_input"] == 0
    assert found["text_cosine_mean"] == pytest.approx(1, rel=1e-9)


def test_constant_slots_in_float32_are_static():
    """Rounding of a part in 10 million is not the text's, neither of many slots nor of one that they all are."""
    for slots in (drawn(5, 8), drawn(1, 8).expand(5, -1)):
        concepts = (slots * (1 + 1e-8 * drawn(9, 5, 8, seed=2))).float()
        assert not torch.equal(concepts[0], concepts[1])
        found = analyse(concepts)
        assert found.measures["input_dependence"] < 1e-12
        assert found.measures["rank_input"] == 0
        assert found.dependence_C.max() < 1e-12


def test_slots_made_by_the_text_alone():
    """Slots whose mean is the same score 1; drawn ones about 1 − 1/T, whatever their number."""
    half = drawn(10, 6, 5)
    found = measure(torch.cat([half, -half]) + drawn(5, seed=3))
    assert found["input_dependence"] == pytest.approx(1, rel=1e-9)
    chance = measure(drawn(40, 64, 32))["input_dependence"]
    assert chance == pytest.approx(1 - 1 / 40, abs=0.003)


def test_one_vector_for_all_slots_shows_in_the_energy():
    """A collapsed model with a little of the text depends on it by variance, and hardly by energy."""
    noise = drawn(10, 6, 5)
    whole, energy, _ = input_dependence(100 + torch.cat([noise, -noise]))
    assert whole == pytest.approx(1, rel=1e-9)
    assert energy < 1e-3


def test_static_and_dependent_slots_are_told_apart():
    """Each slot has its own value."""
    concepts = drawn(8, 4, 6)
    concepts = torch.cat([concepts, -concepts])
    concepts[:, 1] = torch.tensor([5.0, -5, 0, 0, 0, 0])
    concepts[:, 3] = -concepts[0, 1].clone()
    slots = input_dependence(concepts)[2]
    assert slots.tolist() == pytest.approx([1, 0, 1, 0], abs=1e-9)


@pytest.mark.parametrize("how", ["turned", "scaled", "slots", "texts", "moved"])
def test_measures_do_not_change_with_the_view(how):
    """Turning, scaling or reordering concepts changes no ratio; moving them no variance."""
    concepts = drawn(7, 5, 6) + drawn(5, 6, seed=1)
    before = measure(concepts)
    after = measure({
        "turned": concepts @ turned(6), "scaled": 1e3 * concepts, "slots": concepts[:, [4, 2, 0, 1, 3]],
        "texts": concepts.flip(0), "moved": concepts + drawn(6, seed=5),
    }[how])  # fmt: skip
    own = [name for name in before if not name.startswith(("std", "norm", "dims_"))]
    if how == "moved":
        own = ["input_dependence", "rank_input", "entropy_rank_input", "isotropy", "participation_ratio", "std_mean"]  # fmt: skip
    elif how in ("slots", "texts"):
        own = list(before)
    for name in own:
        assert after[name] == pytest.approx(before[name], rel=1e-9, abs=1e-12), name


def test_pairs_and_covariance_are_their_formulas():
    """Cosines and uniformity by loops, covariance by numpy."""
    concepts = drawn(6, 4, 5) + 0.5
    found, x = measure(concepts), concepts.numpy()
    each = [
        [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.permutations(text, 2)]
        for text in x
    ]
    assert found["cosine_mean"] == pytest.approx(np.abs(each).mean(), rel=1e-9)
    assert found["cosine_max"] == pytest.approx(np.max(each), rel=1e-9)
    assert found["cosine_max_text"] == pytest.approx(np.max(each, axis=1).mean(), rel=1e-9)
    assert found["uniformity"] == pytest.approx(np.exp(-2 * (2 - 2 * np.array(each))).mean(), rel=1e-9)  # fmt: skip
    rows = x.reshape(-1, 5)
    values = np.linalg.eigvalsh(np.cov(rows.T))
    assert found["isotropy"] == pytest.approx(values[0] / values[-1], rel=1e-9)
    assert found["isotropy_but_one"] == pytest.approx(values[1] / values[-1], rel=1e-9)
    ratio = values.sum() ** 2 / (values**2).sum()
    assert found["participation_ratio"] == pytest.approx(ratio, rel=1e-9)
    assert found["participation_share"] == pytest.approx(ratio / 5, rel=1e-9)
    deviations = rows.std(0, ddof=1)
    for name, wanted in (("min", deviations.min()), ("mean", deviations.mean()), ("max", deviations.max())):  # fmt: skip
        assert found[f"std_{name}"] == pytest.approx(wanted, rel=1e-9)
    norms = np.linalg.norm(rows, axis=1)
    assert found["norm_mean"] == pytest.approx(norms.mean(), rel=1e-9)
    assert (found["norm_min"], found["norm_max"]) == pytest.approx((norms.min(), norms.max()))
    pooled = [text.mean(0) / np.linalg.norm(text.mean(0)) for text in x]
    pairs = [a @ b for a, b in itertools.permutations(pooled, 2)]
    assert found["text_cosine_mean"] == pytest.approx(np.mean(pairs), rel=1e-9)


def test_collapsed_numbers_are_counted():
    """Those whose deviation is below 1e-4, and no other."""
    concepts = drawn(6, 4, 5)
    concepts[..., 1] = 7
    concepts[..., 3] *= 1e-5
    concepts[..., 4] *= 1e-3
    assert measure(concepts)["dims_collapsed"] == 2


def test_attention_is_its_formulas():
    """Entropy, distance, shares of slots and places, by loops; masked places are left out."""
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    scores = 2 * drawn(2, 3, 4, 5)
    weights = scores.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
    use = AttentionUse()
    use.add(weights, mask)
    w = [weights[0, ..., :3].numpy(), weights[1].numpy()]
    entropy, distance, share, first, top = np.zeros(4), np.zeros(4), np.zeros(4), 0.0, 0.0
    for text in w:
        tokens = text.shape[-1]
        for a, c in itertools.product(range(3), range(4)):
            read = text[a, c]
            entropy[c] -= sum(p * math.log(p) for p in read) / math.log(tokens) / 6
            mean = [text[a, :, n].mean() for n in range(tokens)]
            distance[c] += sum(abs(p - m) for p, m in zip(read, mean, strict=True)) / 2 / 6
            share[c] += sum(read[n] / text[a, :, n].sum() for n in range(tokens)) / tokens / 6
        first += text[:, :, 0].mean() / 2
        top += max(text[:, :, n].mean() for n in range(tokens)) / 2
    assert use.entropy.tolist() == pytest.approx(entropy, rel=1e-9)
    assert use.distance.tolist() == pytest.approx(distance, rel=1e-9)
    assert use.share.tolist() == pytest.approx(share, rel=1e-9)
    assert share.sum() == pytest.approx(1)
    places = [(w[0][:, :, n].mean() + w[1][:, :, n].mean()) / 2 for n in range(3)]
    places += [w[1][:, :, n].mean() for n in (3, 4)]
    assert use.place.tolist() == pytest.approx(places, rel=1e-9)
    found = use.measures()
    assert found["attention_first_share"] == pytest.approx(first, rel=1e-9)
    assert found["attention_top_share"] == pytest.approx(top, rel=1e-9)
    assert found["attention_padding_share"] == 0
    assert found["attention_entropy_min"] == pytest.approx(entropy.min(), rel=1e-9)
    assert found["attention_distinct_share"] == np.mean(distance > 0.1)
    balance = math.exp(-sum(p * math.log(p) for p in share)) / 4
    assert found["attention_slot_balance"] == pytest.approx(balance, rel=1e-9)


def test_attention_at_its_ends():
    """Even reading, and slots that read one token each: all measures are known."""
    even, apart = AttentionUse(), AttentionUse()
    even.add(torch.full((2, 1, 4, 8), 1 / 8))
    apart.add(torch.eye(4, dtype=torch.float64)[None, None].expand(2, 2, -1, -1))
    found = even.measures()
    assert found["attention_entropy"] == pytest.approx(1)
    assert found["attention_distance"] == found["attention_distinct_share"] == 0
    assert found["attention_first_share"] == pytest.approx(1 / 8)
    found = apart.measures()
    assert found["attention_entropy"] == 0
    assert found["attention_distance"] == pytest.approx(3 / 4)
    assert found["attention_distinct_share"] == found["attention_slot_balance"] == 1


def test_attention_on_padding_is_told():
    """A model that reads filled-up places has their share; what it reads besides is measured as ever."""
    weights, mask = torch.full((1, 2, 3, 4), 0.25), torch.tensor([[1, 1, 1, 0]])
    use = AttentionUse()
    use.add(weights, mask)
    assert use.measures()["attention_padding_share"] == pytest.approx(0.25)
    assert use.measures()["attention_entropy"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("weights", "mask", "says"),
    [
        (torch.full((1, 2, 3, 4), 0.5), None, "sum to 1"),
        (torch.full((1, 2, 3, 4), torch.nan), None, "sum to 1"),
        (torch.full((1, 2, 3, 4), 0.25), torch.ones(1, 5), "tokens"),
        (torch.full((2, 2, 3, 4), 0.25), torch.tensor([[1] * 4, [0] * 4]), "end to end"),
        (torch.full((1, 2, 5, 4), 0.25), None, "same slots"),
    ],
)
def test_attention_that_cannot_be_is_refused(weights, mask, says):
    """Weights that are no shares, another mask, an empty text, other slots than before."""
    use = AttentionUse()
    use.add(torch.full((1, 2, 3, 4), 0.25))
    with pytest.raises(ValueError, match=says):
        use.add(weights, mask)


def test_padding_changes_nothing():
    """Texts with junk behind their mask, and in other batches, give the same measures."""
    encoder = model()
    plain = collect(encoder, [batch(6, 9)], attentions="all")
    ids = batch(6, 9)["input_ids"]
    parts = []
    for rows, padding in ((slice(0, 2), 5), (slice(2, 6), 3)):
        padded = batch(len(ids[rows]), 9, seed=1, padding=padding)
        padded["input_ids"][:, :9] = ids[rows]
        parts.append(padded)
    other = collect(encoder, parts, attentions="all")
    a, b = measure(plain.concepts_TCH, plain.attention), measure(other.concepts_TCH, other.attention)  # fmt: skip
    assert a == pytest.approx(b, rel=1e-9, abs=1e-12)
    assert a["attention_padding_share"] == 0
    for one, two in zip(plain.attention, other.attention, strict=True):
        assert one.place.tolist() == pytest.approx(two.place[:9].tolist(), rel=1e-9)
        assert two.place[9:].count_nonzero() == 0


def test_collect_gives_what_the_model_gives():
    """Concepts of the forward pass without dropout, attention of its layers; the mode is left as it was."""
    encoder = model(hidden_dropout_prob=0.5).train()
    batches = [batch(3, 8), batch(2, 5, seed=1, padding=2)]
    found = collect(encoder, batches, attentions="all")
    assert encoder.training
    encoder.eval()
    outs = [encoder(**each, output_attentions=True) for each in batches]
    assert torch.equal(found.concepts_TCH, torch.cat([out.last_hidden_state for out in outs]))
    assert not found.concepts_TCH.requires_grad
    for number, use in enumerate(found.attention):
        direct = AttentionUse()
        for out, each in zip(outs, batches, strict=True):
            direct.add(out.attentions[number].detach(), each["attention_mask"])
        assert use.measures() == direct.measures()
        assert use.texts == 5
    last = collect(encoder, batches).attention
    assert [use.measures() for use in last] == [found.attention[-1].measures()]
    assert collect(encoder, batches, attentions="none").attention == ()
    plain = [{"input_ids": each["input_ids"]} for each in (batch(3, 8), batch(2, 5))]
    assert collect(encoder, plain).attention[0].place.shape == (8,)


def test_a_recursive_encoder_has_a_layer_for_each_pass():
    """As often as it is applied."""
    found = collect(model(recursive=True, num_iterations=4), [batch(2, 5)], attentions="all")
    assert len(found.attention) == 4


def test_a_model_that_does_not_read_has_no_input_dependence():
    """Values of all readings at 0: concepts are those of the slots; trained or not, the norm leaves isotropy 0."""
    encoder = model(kind=ConceptForMaskedLM).encoder
    reading = measure(collect(encoder, [batch(8, 9)]).concepts_TCH)
    assert reading["input_dependence"] > 0.05
    assert reading["isotropy"] < 1e-12
    assert reading["isotropy_but_one"] > 1e-4
    for layer in encoder.layers:
        torch.nn.init.zeros_(layer.read.value.weight)
    deaf = measure(collect(encoder, [batch(8, 9)]).concepts_TCH)
    assert deaf["input_dependence"] < 1e-12
    assert deaf["rank_text"] > 1.5


def test_what_cannot_be_measured_is_refused():
    """One text, other shapes, NaN, no batch, a text that is masked from end to end."""
    for concepts, says in (
        (drawn(1, 4, 5), "two texts"),
        (drawn(4, 5), "two texts"),
        (drawn(3, 4, 5).index_fill(0, torch.tensor([1]), torch.nan), "20 of 60"),
    ):
        with pytest.raises(ValueError, match=says):
            measure(concepts)
        with pytest.raises(ValueError, match=says):
            input_dependence(concepts)
    with pytest.raises(ValueError, match="got none"):
        collect(model(), [])
    empty = batch(2, 4)
    empty["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="end to end"):
        collect(model(), [empty])


def test_every_measure_is_declared_and_no_other():
    """Names of METRICS, values inside their bounds; of one slot all but the pairs."""
    use = AttentionUse()
    use.add(drawn(2, 2, 4, 6).softmax(-1))
    rounding = 1e-9
    for concepts in (drawn(5, 4, 6), torch.zeros(3, 4, 6), torch.ones(3, 4, 6)):
        found = measure(concepts, [use, use])
        assert list(found) == list(METRICS)
        for name, value in found.items():
            low, high = METRICS[name].low, METRICS[name].high
            assert low is None or value >= low - rounding, name
            assert high is None or value <= high + rounding, name
    pairs = {"cosine_mean", "cosine_max", "cosine_max_text", "uniformity"}
    attention = {name for name in METRICS if name.startswith("attention")}
    assert set(measure(drawn(5, 1, 6))) == set(METRICS) - pairs - attention
    assert set(under("val")) == {f"val/{name}" for name in METRICS}
    assert set(LEVELS) <= set(METRICS)
    for metric in METRICS.values():
        assert metric.says.endswith(".")
        assert "{}" not in metric.says


def test_levels_are_those_of_the_source():
    """Good from its value on, ok from its own on; where small is good, below. Counts of slots only from 128 on."""
    for name, ok, good in (("rank_mean", 40, 90), ("rank_mean_share", 0.3, 0.7), ("participation_share", 0.1, 0.3),
                           ("dims95_mean", 10, 50), ("isotropy", 0.001, 0.01), ("std_mean", 0.3, 0.8), ("std_min", 0.01, 0.1)):  # fmt: skip
        values = (0.99 * ok, ok, 0.99 * good, good)
        assert [level(name, v, slots=128) for v in values] == ["bad", "ok", "ok", "good"], name
    for name, ok, good in (("cosine_mean", 0.5, 0.3), ("cosine_max", 0.8, 0.6), ("uniformity", 0.6, 0.3), ("dominance_mean", 0.5, 0.3)):  # fmt: skip
        values = (ok, 0.99 * ok, good, 0.99 * good)
        assert [level(name, v) for v in values] == ["bad", "ok", "ok", "good"], name
    assert level("rank_mean", 31, slots=32) is None
    assert level("input_dependence", 0.0) is None
    assert STATIC in METRICS["rank_mean"].says


@pytest.mark.parametrize("layers", [0, 1, 9])
def test_the_figure_is_drawn_for_any_analysis(tmp_path, layers):
    """Also for static slots, slots without a mean, and one slot; the picture is not empty."""
    half = drawn(3, 4, 6)
    kinds = [drawn(4, 6).expand(3, -1, -1), torch.cat([half, -half]), drawn(3, 1, 6), torch.zeros(2, 4, 6)]  # fmt: skip
    for number, concepts in enumerate(kinds):
        use = AttentionUse()
        use.add(drawn(2, 2, concepts.shape[1], 6).softmax(-1))
        draw(analyse(concepts, [use] * layers), tmp_path / f"{number}.png", title="tiny")
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000
