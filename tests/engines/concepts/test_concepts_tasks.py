"""Labelled tasks: what is read, how it is divided, how answers are scored, and what is refused."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from evaluation_helpers import TEXTS, write, write_task

from assay.core.errors import ConfigError
from assay.core.settings import Settings
from assay.engines.concepts.baselines import majority
from assay.engines.concepts.parts import Examples, load
from assay.engines.concepts.scores import scores
from assay.engines.concepts.tasks import TASKS

SHARED = Path(__file__).parents[4] / "shared"
DATA = Settings.from_environment().data_dir or (SHARED if SHARED.is_dir() else None)
OFFICIAL = {"mrpc": (3668, 408), "stsb": (5749, 1500), "rte": (2490, 277), "cola": (8551, 1043),
            "sst2": (67349, 872), "sick-r": (4500, 4927), "sick-e": (4500, 4927)}  # fmt: skip


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("names", [0, 1], ids=["names", "other-names"])
def test_every_task_is_read_from_a_folder(tmp_path, task, names):
    """Its columns by either name, in the folder or its data/; no example is lost or in two parts."""
    write_task(tmp_path / "data", task, names=names)
    parts = load(task.name, tmp_path)
    found = [parts.train, parts.chosen, *(parts.reported[suffix] for suffix in parts.reported)]
    whole = [key for keys in map(Examples.keys, found) for key in keys]
    assert len(set(whole)) == len(whole) == 40 * (1 + len(task.reported))
    assert len(parts.chosen) == 4
    assert all((part.second is None) != task.is_pair for part in found)
    assert set(parts.overlap.values()) == {0}
    kind = np.float64 if task.is_regression else np.int64
    assert all(part.labels.dtype == kind for part in found)


def test_examples_keep_their_answers(tmp_path):
    """Dividing and mixing moves texts and answers together."""
    texts = TEXTS[:50]
    for part in ("train", "validation"):
        write(tmp_path / "glue/sst2", part, sentence=texts, label=[len(t) % 2 for t in texts])
    parts = load("sst2", tmp_path)
    for part in (parts.train, parts.chosen, parts.reported[""]):
        assert [len(text) % 2 for text in part.first] == part.labels.tolist()


def test_the_division_is_always_the_same(tmp_path):
    """By a generator of its own: neither numpy's global state nor the order of calls changes it."""
    write_task(tmp_path, TASKS["mrpc"], number=60)
    first = load("mrpc", tmp_path)
    np.random.seed(5)  # noqa: NPY002  (that this does nothing is what is tested)
    again = load("mrpc", tmp_path)
    assert first.digest == again.digest
    assert first.chosen.first == again.chosen.first
    assert list(first.train.first) != sorted(first.train.first), "train is mixed"


def test_the_same_texts_stay_together(tmp_path):
    """Also in the other order, other case and other spaces: nothing held out was learned from."""
    first, second = TEXTS[:30], TEXTS[30:60]
    turned = [f"  {text.upper()} " for text in second]
    write(
        tmp_path / "glue/qqp_train_subset", "train",
        question1=[*first, *turned], question2=[*second, *first], label=[0, 1] * 30,
    )  # fmt: skip
    parts = load("qqp-subset", tmp_path)
    found = [set(part.keys()) for part in (parts.train, parts.chosen, parts.reported[""])]
    assert len(set.union(*found)) == sum(map(len, found)) == 30
    assert parts.sizes == {"train": 48, "chosen": 6, "reported": 6}


def test_at_most_so_many(tmp_path):
    """A tenth of them is held out; the reported part is whole, and those taken are drawn at random."""
    write_task(tmp_path, TASKS["cola"], number=100)
    parts = load("cola", tmp_path, most=50)
    assert parts.sizes == {"train": 45, "chosen": 5, "reported": 100}
    assert set(parts.train.first) - set(TEXTS[:50])


def test_overlap_is_counted(tmp_path):
    """Examples that are in two official parts, and examples of which one text is."""
    a, b = TEXTS[:20], TEXTS[20:40]
    write(tmp_path / "glue/mrpc", "train", sentence1=a, sentence2=b, label=[0, 1] * 10)
    write(
        tmp_path / "glue/mrpc", "validation",
        sentence1=[a[0], b[1], a[2], TEXTS[50]], sentence2=[b[0], a[1], TEXTS[51], TEXTS[52]],
        label=[0, 1, 0, 1],
    )  # fmt: skip
    overlap = load("mrpc", tmp_path).overlap
    assert overlap["reported_in_train"] + overlap["reported_in_chosen"] == 2
    assert overlap["reported_texts_in_train"] + overlap["reported_texts_in_chosen"] == 3
    assert overlap["chosen_in_train"] == 0


def test_another_part_can_be_reported_on(tmp_path):
    """By its name, and it is told."""
    write_task(tmp_path, TASKS["mrpc"])
    write(tmp_path / "glue/mrpc", "test", sentence1=TEXTS[:7], sentence2=TEXTS[7:14], label=[1] * 7)
    parts = load("mrpc", tmp_path, reported="test")
    assert (parts.sizes["reported"], parts.told["reported"]) == (7, "test, as asked for")


def test_the_hub_is_asked_for_the_right_thing(monkeypatch):
    """Repository, configuration, part and revision; nothing but the hub is read."""
    asked = []

    def load_dataset(repository, configuration, *, split, revision):
        asked.append((repository, configuration, split, revision))
        return datasets.Dataset.from_dict(
            {"sentence_A": TEXTS[:20], "sentence_B": TEXTS[20:40], "relatedness_score": [1.5] * 20}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    parts = load("hub:sick-r", None)
    assert [each[2:] for each in asked] == [
        ("train", "refs/convert/parquet"), ("test", "refs/convert/parquet"),
    ]  # fmt: skip
    assert parts.train.labels.tolist() == [1.5] * 18
    with pytest.raises(ConfigError, match="'qqp-subset' is a subset in a data folder"):
        load("hub:qqp-subset", None)


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch):
    """With what it said, and what needs no network."""

    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigError, match=r"part train of hub:nyu-mll/glue:rte.*no route.*local"):
        load("hub:rte", None)


GOOD = {"sentence1": TEXTS[:20], "sentence2": TEXTS[20:40], "label": [0, 1] * 10}


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("mrpc", {"label": [0, 1, 2, 3] * 5}, r"a class from 0 to 1 .*row 2 has 2 \(10 rows"),
        ("mrpc", {"label": [-1] * 20}, "unlabelled .*another part, such as validation"),
        ("mrpc", {"label": [0, -1] * 10}, "row 1 has -1"),
        ("mrpc", {"label": ["yes", "no"] * 10}, "its type is String"),
        ("mrpc", {"label": [0, None] * 10}, "with 10 missing"),
        ("mrpc", {"label": [0.0, 1.0] * 10}, "its type is Float64"),
        ("stsb", {"label": [0.0, 5.5] * 10}, "a number from 0 to 5 .*row 1 has 5.5"),
        ("stsb", {"label": [0.0, float("nan")] * 10}, "row 1 has nan"),
        (
            "mrpc",
            {"sentence1": [None, "a"] * 10},
            "column 'sentence1' .*texts in every row; 10 are missing",
        ),
        ("mrpc", {"sentence2": list(range(20))}, r"they are not \(type Int64\)"),
        ("mrpc", {"sentence2": None}, "column 'sentence2' or 'sentence_B' or 'question2'"),
        ("mrpc", {"label": None}, "must have the column 'label'; its columns are sentence1, sent"),
    ],
)
@pytest.mark.parametrize("part", ["train", "validation"])
def test_bad_columns_are_told(tmp_path, name, changes, says, part):
    """With task, file, column and way out, in whichever part they are."""
    bad = {key: value for key, value in (GOOD | changes).items() if value is not None}
    good = GOOD | ({"label": [0.0, 5.0] * 10} if name == "stsb" else {})
    for each in ("train", "validation"):
        write(tmp_path / "glue" / name, each, **(bad if each == part else good))
    with pytest.raises(ConfigError, match=f"(?=.*{part}-00000)Task '{name}': .*{says}"):
        load(name, tmp_path)


def test_missing_files_are_told(tmp_path):
    """With the folders that were looked into; a subset is offered, never taken."""
    with pytest.raises(ConfigError, match=r"'rte' needs train-.*ASSAY_DATA is not set.*hub:rte"):
        load("rte", None)
    write_task(tmp_path, TASKS["qqp-subset"])
    with pytest.raises(ConfigError, match=f"looked in {tmp_path}/glue/qqp and .*the task 'qqp-sub"):
        load("qqp", tmp_path)
    write_task(tmp_path, TASKS["rte"])
    with pytest.raises(ConfigError, match=r"'rte' needs test-\*.parquet"):
        load("rte", tmp_path, reported="test")


def test_broken_and_empty_parts_are_told(tmp_path):
    """A file that is no Parquet, a part without rows, too few to divide, and impossible requests."""
    write_task(tmp_path, TASKS["rte"])
    path = write(tmp_path / "glue/rte", "validation", sentence1=["a"], sentence2=["b"], label=[1])
    path.write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match=r"'rte': .*validation.* must be a Parquet file"):
        load("rte", tmp_path)
    write(tmp_path / "glue/rte", "validation", **{k: v[:0] for k, v in GOOD.items()})
    with pytest.raises(ConfigError, match=r"'rte': .*validation.* must hold examples; it is empty"):
        load("rte", tmp_path)
    write(tmp_path / "glue/sst2", "train", sentence=["one text"], label=[1])
    write(tmp_path / "glue/sst2", "validation", sentence=["one text"], label=[1])
    with pytest.raises(ConfigError, match="'sst2': each part needs an example; train has none of"):
        load("sst2", tmp_path)
    with pytest.raises(ConfigError, match="or more; got -1"):
        load("rte", tmp_path, most=-1)
    with pytest.raises(ConfigError, match=r"must be one of cola, .*; got 'wnli'"):
        load("wnli", tmp_path)


def test_classes_are_scored_as_the_formulas_say():
    """F1 and Matthews' correlation from the four counts, accuracy from the matches."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, answers = rng.integers(0, 2, (2, 30))
        tp, tn = (labels & answers).sum(), ((1 - labels) & (1 - answers)).sum()
        fp, fn = ((1 - labels) & answers).sum(), (labels & (1 - answers)).sum()
        found = scores(("accuracy", "f1", "mcc"), answers, labels)
        assert found["accuracy"] == pytest.approx((tp + tn) / 30, rel=1e-12)
        assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn), rel=1e-12)
        root = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
        assert found["mcc"] == pytest.approx((tp * tn - fp * fn) / root, rel=1e-12)


def test_numbers_are_scored_as_the_formulas_say():
    """Pearson from centred products; Spearman is Pearson's of mean ranks, with ties."""
    rng = np.random.default_rng(1)
    labels, answers = rng.integers(0, 6, (2, 40)).astype(float)

    def pearson(x, y):
        x, y = x - x.mean(), y - y.mean()
        return (x @ y) / np.sqrt((x @ x) * (y @ y))

    def ranks(x):
        return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])

    found = scores(("pearson", "spearman"), answers, labels)
    assert found["pearson"] == pytest.approx(pearson(labels, answers), rel=1e-12)
    assert found["spearman"] == pytest.approx(pearson(ranks(labels), ranks(answers)), rel=1e-12)


def test_one_answer_for_all_has_no_correlation():
    """0, not an undefined number that a comparison would let pass; F1 of no positive answer too."""
    labels, same = np.array([0, 1, 1, 0]), np.zeros(4, np.int64)
    assert scores(("f1", "mcc"), same, labels) == {"f1": 0.0, "mcc": 0.0}
    assert scores(("pearson", "spearman"), same + 0.1, labels) == {"pearson": 0.0, "spearman": 0.0}


@pytest.mark.skipif(DATA is None, reason="the tasks are not in the repository: set ASSAY_DATA")
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_sizes(name):
    """Those of the data sets' own papers; no example of `chosen` is in `train`."""
    parts = load(name, DATA)
    train, reported = OFFICIAL[name]
    sizes = parts.sizes
    assert (sizes["train"] + sizes["chosen"], sizes["reported"]) == (train, reported)
    assert sizes["chosen"] == pytest.approx(train / 10, abs=3)
    assert parts.overlap["chosen_in_train"] == 0


@pytest.mark.skipif(DATA is None, reason="the tasks are not in the repository: set ASSAY_DATA")
def test_yes_to_all_of_mrpc():
    """68.4 accuracy and 81.2 F1 on the official validation part, from its counts 279 of 408."""
    found = majority(load("mrpc", DATA))
    assert found == pytest.approx({"accuracy": 279 / 408, "f1": 558 / 687}, rel=1e-12)
    assert [round(100 * value, 1) for value in found.values()] == [68.4, 81.2]
