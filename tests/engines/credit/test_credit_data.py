"""Data: the teacher's ladder, and images read from small files made up here."""

import gzip
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars
import pytest
import torch
from credit_helpers import ONLINE
from PIL import Image

from assay.core.errors import ConfigError
from assay.engines.credit.config import TrainConfig
from assay.engines.credit.data import augmented, images, ladder, load
from assay.engines.credit.engine import ENGINE
from assay.engines.credit.images import read, sha256_of

RNG = np.random.default_rng(0)
PLAIN = TrainConfig(block="tanh")


def arrays(train=20, test=12, size=(3, 4)):
    """An image set of ours."""
    return {
        "x_train": RNG.integers(0, 256, (train, *size), dtype=np.uint8),
        "y_train": np.arange(train) % 3,
        "x_test": RNG.integers(0, 256, (test, *size), dtype=np.uint8),
        "y_test": np.arange(test) % 3,
    }


def npz(folder, **changes):
    """Its file, with some arrays changed (None: left out)."""
    made = {name: a for name, a in {**arrays(), **changes}.items() if a is not None}
    path = folder / "set.npz"
    np.savez(path, **made)
    return str(path), made


@pytest.mark.parametrize(("depth", "alpha", "seed"), [(2, 0.0, 1), (4, 1.0, 2), (8, 0.5, 3)])
def test_the_ladders_classes_are_all_there(depth, alpha, seed):
    """Centred logits: no class has a quarter of the samples, none has nothing, in every part."""
    data = ladder(replace(PLAIN, depth=depth, alpha=alpha, width=64), seed)
    assert (len(data.train), len(data.val), len(data.test)) == (4096, 1024, 1024)
    for part in (data.train, data.val, data.test):
        share = part.y_N.bincount(minlength=10) / len(part)
        assert len(share) == 10
        assert share.max() < 0.25
        assert share.min() > 0


def test_the_ladders_parts_are_apart():
    """No input lies in two parts; inputs are standard normal (16 numbers wide: 5 deviations)."""
    data = ladder(ONLINE, 4)
    rows = torch.cat([part.x_NI for part in (data.train, data.val, data.test)])
    assert len(rows.unique(dim=0)) == len(rows) == 70 + 2048
    assert abs(float(rows.mean())) < 5 / rows.numel() ** 0.5
    assert float(rows.std()) == pytest.approx(1, abs=5 / (2 * rows.numel()) ** 0.5)


def test_a_ladder_is_its_seeds_and_its_settings():
    """The same again; another seed, another ladder; more samples, the same teacher's form."""
    first, again, other = (ladder(ONLINE, seed) for seed in (4, 4, 5))
    assert torch.equal(first.train.x_NI, again.train.x_NI)
    assert torch.equal(first.test.y_N, again.test.y_N)
    assert not torch.isclose(first.train.x_NI, other.train.x_NI).any(1).all()
    bent = ladder(replace(ONLINE, alpha=0.0), 4)
    assert torch.equal(bent.train.x_NI, first.train.x_NI)
    assert not torch.equal(bent.train.y_N, first.train.y_N)


def test_digits_are_on_every_machine():
    """1797 images of 64 numbers: 450 to judge, a tenth of the rest to choose by."""
    data = load(replace(PLAIN, data="digits", block="gelu"), None, 0)
    assert (len(data.train), len(data.val), len(data.test)) == (1213, 134, 450)
    assert (data.inputs, data.classes, data.image) == (64, 10, None)
    assert data.train.x_NI.dtype == torch.float32
    assert data.train.y_N.dtype == torch.int64


def test_standardisation_uses_what_is_trained_on_alone(tmp_path):
    """Validation and test parts that are far off move neither mean nor deviation."""
    base = RNG.normal(5, 3, (20, 2, 3))
    far = base.copy()
    far[18:] += 1000
    found = []
    for number, x in enumerate((base, far)):
        folder = tmp_path / str(number)
        folder.mkdir()
        name, _ = npz(folder, x_train=x, x_test=x[:12] + 50)
        found.append(images(name, None))
    assert torch.equal(found[0].train.x_NI, found[1].train.x_NI)
    assert torch.equal(found[0].test.x_NI, found[1].test.x_NI)
    wanted = (base[:18] - base[:18].mean()) / base[:18].std()
    np.testing.assert_allclose(found[0].train.x_NI, wanted.reshape(18, 6), rtol=1e-4, atol=1e-5)
    assert float(found[1].val.x_NI.mean()) > 100


def test_colours_are_standardised_apart(tmp_path):
    """Each channel by its own mean and deviation; rows are channel, height, width."""
    x = RNG.normal(size=(20, 4, 5, 3)) * [1, 10, 100] + [0, 5, -7]
    data = images(npz(tmp_path, x_train=x, x_test=x[:12])[0], None)
    assert data.image == (3, 4, 5)
    wanted = (x[:18] - x[:18].mean((0, 1, 2))) / x[:18].std((0, 1, 2))
    wanted = wanted.transpose(0, 3, 1, 2).reshape(18, -1)
    np.testing.assert_allclose(data.train.x_NI, wanted, rtol=1e-4, atol=1e-5)


def test_some_training_samples(tmp_path):
    """train_size takes the first, leaves the held-out parts, and refuses more than there are."""
    name, made = npz(tmp_path)
    config = replace(PLAIN, data=name, train_size=7)
    data = load(config, None, 0)
    assert data.train.y_N.tolist() == made["y_train"][:7].tolist()
    assert (len(data.val), len(data.test), data.classes) == (2, 12, 3)
    with pytest.raises(ConfigError, match=r"train_size must be at most the 18 .* got 19"):
        load(replace(config, train_size=19), None, 0)


def fashion(folder, count=20, size=28):
    """idx files, as they are handed out."""
    folder.mkdir(parents=True)
    made = arrays(count, 10, (size, size))
    for part, stem in (("train", "train"), ("test", "t10k")):
        for kind, letters, head in (("x", "images-idx3", 16), ("y", "labels-idx1", 8)):
            values = made[f"{kind}_{part}"].astype(np.uint8).tobytes()
            path = folder / f"{stem}-{letters}-ubyte.gz"
            path.write_bytes(gzip.compress(b"h" * head + values))
    return made


def cifar(folder, made=None, image="img", label="label"):
    """Parquet files of PNGs, train in two parts."""
    folder.mkdir(parents=True)
    made = made or arrays(20, 10, (4, 5, 3))

    def png(x):
        file = io.BytesIO()
        Image.fromarray(x).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    for part, at, to in (("train-0", 0, 12), ("train-1", 12, 20), ("test-0", 0, 10)):
        which = part.partition("-")[0]
        columns = {
            image: [png(x) for x in made[f"x_{which}"][at:to]],
            label: made[f"y_{which}"][at:to].tolist(),
        }
        polars.DataFrame(columns).write_parquet(folder / f"{part}.parquet")
    return made


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "npz"])
@pytest.mark.parametrize("below", ["", "data"])
def test_sets_are_read_as_they_were_written(name, below, tmp_path):
    """The same pixels and labels, in order, from the data folder or `data` in it."""
    if name == "npz":
        name, made = npz(tmp_path)
        name = name if below else Path(name).name
        (tmp_path / below).mkdir(exist_ok=True)
    else:
        made = {"fashion-mnist": fashion, "cifar10": cifar}[name](tmp_path / below / name)
    found = read(name, tmp_path)
    for key, value in made.items():
        np.testing.assert_array_equal(found[key], value)
    digest = sha256_of(name, tmp_path)
    (tmp_path / below / "NOTES.md").write_text("beside it")
    assert sha256_of(name, tmp_path) == digest
    config = replace(PLAIN, data=name)
    task = ENGINE.tasks["train"]
    task.check([config], tmp_path)
    assert task.fingerprint(config, {"data": 0}, tmp_path) == {name: digest}


BROKEN = {
    "label kind": ({"y_train": np.arange(20) / 2}, "Labels .* y_train is float64"),
    "label words": ({"y_test": np.array(["a"] * 12)}, "Labels .* y_test"),
    "label below 0": ({"y_train": np.arange(20) - 1}, "Labels .* from -1"),
    "label table": ({"y_train": np.zeros((20, 2), int)}, "must have x_train"),
    "fewer labels": ({"y_train": np.arange(19)}, r"must have .*\(19,\)"),
    "no images": ({"x_train": np.arange(20)}, "must have x_train"),
    "two sizes": ({"x_test": np.zeros((12, 4, 4))}, "images of one size"),
    "too few": ({"x_test": np.zeros((9, 3, 4)), "y_test": np.arange(9)}, "at least 10"),
    "no number": ({"x_test": np.full((12, 3, 4), np.nan)}, "Inputs .* x_test"),
    "channels first": (
        {"x_train": np.zeros((20, 3, 8, 8)), "x_test": np.zeros((12, 3, 8, 8))},
        r"channels last, .* x_train is \[20, 3, 8, 8\]",
    ),
    "words": ({"x_train": np.full((20, 3, 4), "a")}, "Inputs .* x_train"),
    "unseen class": (
        {"y_train": np.arange(20) % 3, "y_test": np.arange(12) % 5},
        r"classes that y_train has; it has \[3, 4\] besides",
    ),
    "left out": ({"y_test": None}, r"must be an \.npz with x_train, y_train"),
}


@pytest.mark.parametrize("which", BROKEN)
def test_a_broken_set_is_refused(which, tmp_path):
    """A ConfigError with its name and what is wrong with it."""
    changes, says = BROKEN[which]
    name, _ = npz(tmp_path, **changes)
    with pytest.raises(ConfigError, match=says) as error:
        read(name, None)
    assert name in str(error.value)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04broken", "array", "cut"])
def test_a_file_that_is_no_npz_is_refused(content, tmp_path):
    """Empty, of other bytes, cut short, or a single array: a ConfigError."""
    path = tmp_path / "set.npz"
    if content == "array":
        file = io.BytesIO()
        np.save(file, np.arange(3))
        content = file.getvalue()
    if content == "cut":
        content = Path(npz(tmp_path)[0]).read_bytes()[:-100]
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"set.npz' must be an \.npz with x_train"):
        read(str(path), None)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mnist", "data must be ladder, digits, fashion-mnist, cifar10, .*got 'mnist'"),
        ("fashion-mnist", "'fashion-mnist' must be a folder of the data folder; ASSAY_DATA is"),
        ("cifar10", "'cifar10' must be a folder"),
        ("missing.npz", "'missing.npz' must be a file"),
    ],
)
@pytest.mark.parametrize("has_folder", [False, True])
def test_data_that_is_not_there_is_refused(name, says, has_folder, tmp_path):
    """Before the first run, and when it is read."""
    folder = tmp_path if has_folder else None
    with pytest.raises(ConfigError, match=says):
        read(name, folder)
    with pytest.raises(ConfigError, match=says):
        ENGINE.tasks["train"].check([replace(PLAIN, data=name)], folder)


@pytest.mark.parametrize("damage", ["missing", "cut", "no gzip", "size", "content"])
def test_damaged_idx_files_are_refused(damage, tmp_path):
    """A ConfigError that says which set and where."""
    fashion(tmp_path / "fashion-mnist", size=27 if damage == "size" else 28)
    path = tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(whole[:-200])
    elif damage == "no gzip":
        path.write_bytes(b"nonsense")
    elif damage == "content":
        path.write_bytes(whole[:100] + bytes(64) + whole[164:])
    with pytest.raises(ConfigError, match=r"'fashion-mnist' in .* cannot be read"):
        read("fashion-mnist", tmp_path)


@pytest.mark.parametrize("damage", ["no test", "columns", "sizes", "no image", "no parquet"])
def test_damaged_parquet_files_are_refused(damage, tmp_path):
    """A ConfigError that says which set, or which of its files."""
    folder = tmp_path / "cifar10"
    cifar(folder, image="picture" if damage == "columns" else "img")
    test = folder / "test-0.parquet"
    if damage == "no test":
        test.unlink()
    elif damage == "sizes":
        cifar(tmp_path / "other", arrays(20, 10, (6, 5, 3)))
        (folder / "train-2.parquet").write_bytes((tmp_path / "other/test-0.parquet").read_bytes())
    elif damage == "no image":
        columns = {"img": [{"bytes": b"nonsense", "path": None}], "label": [1]}
        polars.DataFrame(columns).write_parquet(test)
    elif damage == "no parquet":
        test.write_bytes(b"nonsense")
    says = "must be of one size" if damage == "sizes" else "'cifar10'"
    with pytest.raises(ConfigError, match=says):
        read("cifar10", tmp_path)


def test_a_hub_set_needs_its_library(monkeypatch):
    """Not installed: a ConfigError that says what to install."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="'hub:some/set' needs the library `datasets`"):
        read("hub:some/set", None)


def test_augmentation_moves_pixels_and_nothing_else():
    """One lit pixel stays one pixel of its colour, flipped or not, at most 4 away; or is cut off."""
    count, channels, height, width = 4000, 3, 9, 12
    x = torch.zeros(count, channels, height, width)
    x[:, 1, 4, 2] = 5.0
    out = augmented(x.view(count, -1), (channels, height, width), torch.Generator().manual_seed(0))
    out = out.view(count, channels, height, width)
    assert not out[:, [0, 2]].any()
    places = out[:, 1].nonzero()
    assert (out[:, 1].flatten(1).sum(1) == 5.0).sum() == len(places) > 0.7 * count
    rows, columns = places[:, 1], places[:, 2]
    assert set(rows.tolist()) == set(range(9))
    plain, flipped = set(range(7)), set(range(5, 12))
    assert set(columns.tolist()) == plain | flipped
    # 2 - 4 < 0: of the unflipped (and of the flipped, at the other edge) 2 of 9 are cut off.
    assert len(places) == pytest.approx(count * 7 / 9, abs=5 * (count * 14 / 81) ** 0.5)
    again = augmented(x.view(count, -1), (3, height, width), torch.Generator().manual_seed(0))
    assert torch.equal(again, out.view(count, -1))


def test_augmentation_shifts_whole_pictures():
    """Every picture of different pixels is a window of the padded one or of its mirror image."""
    x = torch.arange(1, 31).float().view(1, 1, 5, 6).expand(50, -1, -1, -1)
    out = augmented(x.reshape(50, -1), (1, 5, 6), torch.Generator().manual_seed(1)).view(50, 5, 6)
    padded = torch.nn.functional.pad(x[0, 0], (4, 4, 4, 4))
    windows = [
        picture[i : i + 5, j : j + 6]
        for picture in (padded, padded.flip(1))
        for i in range(9)
        for j in range(9)
    ]
    assert all(any(torch.equal(each, w) for w in windows) for each in out)
    assert len(out.unique(dim=0)) > 20
