import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import STUDY, edit

from assay.core.errors import StudyError
from assay.core.plan import expand
from assay.core.study import load_study

COMMANDS = """
[study]
id = "c"
question = "Which?"
factor = "method"
seeds = { init = [1, 2] }
cmd = "python train.py --method {method} --seed {seed.init}"
[arms.a]
method = "a"
[arms.b]
method = "b"
"""


def write(folder, text):
    path = folder / "s.toml"
    path.write_text(text, "utf-8")
    return path


def load(folder, *pairs, text=STUDY):
    return load_study(write(folder, edit(text, *pairs)))


def refuse(folder, *pairs, text=STUDY, plan=False):
    """The message for a study file with these changes."""
    use = expand if plan else (lambda study: study)
    with pytest.raises(StudyError) as caught:
        use(load(folder, *pairs, text=text))
    assert "\n" not in str(caught.value).strip(), "one paragraph"
    return str(caught.value)


def test_a_good_study_loads(tmp_path):
    """The plain case: arms, tied seeds, claims and metrics are as written."""
    study = load(tmp_path)
    assert list(study.arms) == ["a", "b"]
    assert study.seeds == {"init": (1, 2, 3), "data": "init"}
    assert study.baseline == "a"
    assert "test/score" in study.metrics
    assert study.claims["better"].min_seeds == 3


BAD = {
    "unknown table": (("[config]", "[confg]"), ["s.toml", "[confg]", "config"]),
    "table is a value": (("[config]\nwidth = 8", ""), ["[config] must be a table", "3"]),
    "unknown key": (('baseline = "a"', 'basline = "a"'), ["[study]", "'basline'", "'baseline'"]),
    "missing key": (('question = "Is b better than a?"\n', ""), ["[study]", "'question'", "Add"]),
    "wrong type": (('id = "s"', "id = 3"), ["[study]", "id", "3"]),
    "bad id": (('id = "s"', 'id = "a/b"'), ["id must be letters", "'a/b'"]),
    "reserved id": (('id = "s"', 'id = "scratch"'), ["scratch"]),
    "unknown engine": (('"lab:ENGINE"', '"adition"'), ["unknown engine 'adition'", "'addition'"]),
    "engine without module": (('"lab:ENGINE"', '"no_such:E"'), ["no_such", "cannot be imported"]),
    "unknown task": (('factor =', 'task = "x"\nfactor ='), ["task 'x'", "fit"]),
    "arms do not differ": (('method = "b"', 'method = "a"'), ["[arms]", "'a' and 'b'", "method"]),
    "arm beside factor": (('method = "b"', 'method = "b"\nlr = 2.0'), ["[arms.b]", "'lr'", "factor"]),
    "no factor": (('factor = "method"\n', ""), ["2 arms", "factor"]),
    "arm is a value": (('[arms.b]\nmethod = "b"', ""), ["[arms.b]", "must be a table"]),
    "unknown shown": (('factor =', 'shown = ["val/scor"]\nfactor ='), ["[study] shown", "'val/scor'"]),
    "unknown baseline": (('baseline = "a"', 'baseline = "z"'), ["baseline", "'z'", "a, b"]),
    "seeds repeated": (("[1, 2, 3]", "[1, 2, 2]"), ["seeds", "'init'", "[1, 2, 2]", "once"]),
    "seed negative": (("[1, 2, 3]", "[-1, 2]"), ["seeds", "[-1, 2]"]),
    "seeds empty": (('{ init = [1, 2, 3], data = "init" }', "{}"), ["seeds", "empty", "init ="]),
    "role missing": ((', data = "init"', ""), ["reads the roles init, data", "gives init"]),
    "role unknown": ((', data = "init"', ', data = "init", x = 1'), ["init, data, x"]),
    "tie to missing role": (('data = "init"', 'data = "x"'), ["'data' is tied to 'x'"]),
    "tie to itself": (('data = "init"', 'data = "data"'), ["'data' is tied to 'data'"]),
    "tie to a tie": (('data = "init"', 'data = "x", x = "init"'), ["'data' is tied to 'x'"]),
    "unknown budget": (("steps = 100", "epochs = 3"), ["budget", "'epochs'", "steps"]),
    "budget of nothing": (("steps = 100", "steps = 0"), ["budget steps", "above 0"]),
    "budget set twice": (("width = 8", "width = 8\nsteps = 5"), ["budget", "steps", "[config]"]),
    "phase frozen by hand": (("budget =", 'phase = "frozen"\nbudget ='), ["assay freeze"]),
    "phase unknown": (('phase = "pilot"', 'phase = "polit"'), ["[claims.better]", "'polit'", "pilot"]),
    "min_seeds": (('phase = "pilot"', "min_seeds = 0"), ["[claims.better]", "min_seeds", "0"]),
    "confidence": (('phase = "pilot"', "confidence = 95.0"), ["confidence", "95.0", "0.95"]),
    "says empty": (('"b is better than a."', '" "'), ["[claims.better]", "says"]),
    "claim without criterion": (
        ("""criterion = 'diff("test/score", "b", "a") > 0'\n""", ""),
        ["[claims.better]", "'criterion' is missing"],
    ),
    "criterion syntax": (('"a") > 0', '"a") >'), ["s.toml [claims.better]", "column"]),
    "criterion metric": (('"test/score"', '"test/scor"'), ["[claims.better]", "test/scor", "test/score"]),
    "criterion arm": (('"b", "a") > 0', '"b", "z") > 0'), ["[claims.better]", "'z'", "a, b"]),
    "criterion grid": (('"a") > 0', '"a", depth=1) > 0'), ["[claims.better]", "depth"]),
    "criterion call": (('diff("test/score", "b", "a") > 0', "open(1) > 0"), ["[claims.better]", "open"]),
    "not a finite number": (("width = 8", "width = nan"), ["[config] width", "finite"]),
    "a date": (("width = 8", "width = 2026-01-01"), ["[config] width", "date", "2026-01-01"]),
    "environment": (("[config]", "[environment]\nA = 1\n[config]"), ["[environment]", "A", "1"]),
    "metric goal": (
        ("[config]", '[metrics."x/y"]\nsays = "m"\ngoal = "up"\n[config]'), ["x/y", "goal", "'up'"]
    ),
    "collect key": (("[config]", '[collect]\ncvs = "m.csv"\n[config]'), ["[collect]", "'cvs'", "'csv'"]),
    "reported arm": (
        ("[config]", '[[reported]]\nmetric="m"\narm="z"\nvalue=1.0\nsource="d"\n[config]'),
        ["[[reported]] number 1", "'z'", "a, b"],
    ),
    "reported place": (
        ("[config]", '[[reported]]\nmetric="m"\narm="a"\nvalue=1.0\nsource="d"\nat={x=1}\n[config]'),
        ["[[reported]] number 1", "'x'", "[grid]"],
    ),
    "reported twice a table": (("[config]", '[reported]\nx = 1\n[config]'), ["[[reported]]"]),
    "grid empty": (("[config]", "[grid]\nalpha = []\n[config]"), ["[grid] alpha", "list"]),
    "grid repeats": (("[config]", "[grid]\nalpha = [1.0, 2.0, 1.0]\n[config]"), ["[grid] alpha", "1.0"]),
    "grid repeats by type": (("[config]", "[grid]\nalpha = [1, 1.0]\n[config]"), ["[grid] alpha"]),
    "grid repeats as text": (("[config]", '[grid]\nalpha = [1, "1"]\n[config]'), ["[grid] alpha"]),
    "grid over seeds": (("[config]", "[grid]\nseed = [1]\n[config]"), ["seed", "rename"]),
    "grid over the factor": (("[config]", '[grid]\nmethod = ["a", "b"]\n[config]'), ["method", "[arms.a]"]),
    "grid over the budget": (("[config]", "[grid]\nsteps = [1, 2]\n[config]"), ["steps", "[grid]"]),
    "grid over a constant": (("width = 8", "width = 8\n[grid]\nwidth = [1]"), ["width", "[config]"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told(tmp_path, name):
    """Every broken rule is told in one paragraph that names file, place and value."""
    pair, words = BAD[name]
    text = STUDY
    if name == "table is a value":
        text = "config = 3\n" + STUDY
    if name == "arm is a value":
        text = edit(STUDY, ("[config]", "[arms]\nb = 3\n[config]"))
    told = refuse(tmp_path, pair, text=text)
    assert "s.toml" in told
    missing = [word for word in words if word not in told]
    assert not missing, told


PLANNED = {
    "unknown field": (("width = 8", "widht = 8"), ["arm 'a'", "'widht'", "'width'"]),
    "field type": (("width = 8", 'width = "8"'), ["width must be a whole number", 'got "8"']),
    "rule of the task": (("width = 8", "lr = -1.0"), ["lr must be above 0", "-1.0"]),
    "difference is a default": (
        ('factor = "method"', 'factor = ["method", "lr"]'),
        ["arm 'a'", "arm 'b'", "same computation"],
    ),
}


@pytest.mark.parametrize("name", PLANNED)
def test_bad_configuration_is_told_by_the_plan(tmp_path, name):
    """What the task's dataclass refuses is told when the study is expanded."""
    pair, words = PLANNED[name]
    text = STUDY
    if name == "difference is a default":
        text = edit(STUDY, ('[arms.b]\nmethod = "b"', '[arms.b]\nmethod = "a"\nlr = 0.1'))
    told = refuse(tmp_path, pair, text=text, plan=True)
    assert all(word in told for word in ["s.toml", *words]), told


def test_empty_arms(tmp_path):
    """A study without arms is refused."""
    text = edit(STUDY, ('[arms.a]\nmethod = "a"\n[arms.b]\nmethod = "b"', "[arms]"))
    assert "at least one [arms.NAME]" in refuse(tmp_path, text=text)


def test_missing_file(tmp_path):
    """A file that is not there is told with its path."""
    with pytest.raises(StudyError, match=r"no study file at .*nothing\.toml"):
        load_study(tmp_path / "nothing.toml")


def test_not_toml(tmp_path):
    """A syntax error of TOML is told with its line."""
    with pytest.raises(StudyError, match=r"not valid TOML.*line 1"):
        load_study(write(tmp_path, "[study\n"))


def test_not_utf8(tmp_path):
    """A file in another encoding is refused, not guessed at."""
    path = tmp_path / "s.toml"
    path.write_bytes(b'[study]\nid = "\xff"\n')
    with pytest.raises(StudyError, match="UTF-8"):
        load_study(path)


def test_folder_instead_of_file(tmp_path):
    """A folder is told as one that cannot be read."""
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path)


def test_engine_and_command_exclude_each_other(tmp_path):
    """An arm has an engine or a command, not both and not none."""
    both = refuse(tmp_path, ('method = "b"', 'method = "b"\ncmd = "x"'))
    neither = refuse(
        tmp_path,
        ('cmd = "python train.py --method {method} --seed {seed.init}"\n', ""),
        text=COMMANDS,
    )
    assert "exactly one" in both
    assert "exactly one" in neither


def test_command_metrics_are_known_only_if_declared(tmp_path):
    """Without [metrics] a command may log anything; with it, a claim's metric must be in it."""
    claim = '\n[claims.x]\nsays = "x"\ncriterion = \'mean("acc", "a") > 0\'\n'
    load_study(write(tmp_path, COMMANDS + claim))
    declared = COMMANDS + '[metrics.accuracy]\nsays = "m"\n' + claim
    assert "'acc'" in refuse(tmp_path, text=declared)


def test_nested_factor(tmp_path):
    """A factor inside a table may be set as a table or with dots."""
    text = edit(
        COMMANDS,
        ('factor = "method"', 'factor = "model.method"'),
        ("{method}", "{model.method}"),
        ('[arms.a]\nmethod = "a"', '[arms.a]\nmodel.method = "a"'),
        ('[arms.b]\nmethod = "b"', '[arms.b.model]\nmethod = "b"'),
    )
    runs = expand(load_study(write(tmp_path, text)))
    assert [r.cmd[3] for r in runs] == ["a", "a", "b", "b"]


def test_digest_ignores_reported_values_only(tmp_path):
    """Reported values decide no verdict; the criterion, seeds and baseline do."""
    one = load(tmp_path).digest
    reported = '[[reported]]\nmetric="m"\narm="a"\nvalue=1.0\nsource="d"\n[config]'
    assert load(tmp_path, ("[config]", reported)).digest == one
    assert load(tmp_path, ("> 0", "> 1")).digest != one
    assert load(tmp_path, ("[1, 2, 3]", "[1, 2]")).digest != one
    assert load(tmp_path, ('baseline = "a"', 'baseline = "b"')).digest != one


def test_first_arm_is_the_baseline_and_part_of_the_digest(tmp_path):
    """Without a declared baseline the order of arms decides, so it is in the digest."""
    plain = edit(STUDY, ('baseline = "a"\n', ""))
    swapped = edit(
        plain,
        (
            '[arms.a]\nmethod = "a"\n[arms.b]\nmethod = "b"',
            '[arms.b]\nmethod = "b"\n[arms.a]\nmethod = "a"',
        ),
    )
    one, two = load_study(write(tmp_path, plain)), load_study(write(tmp_path, swapped))
    assert (one.baseline, two.baseline) == ("a", "b")
    assert one.digest != two.digest


def study_text(arms, grid, inits, datas, order):
    """A study file with shuffled tables and keys; datas None ties the role."""
    data = "init" if datas is None else list(datas)
    head = [
        'id = "s"', 'question = "?"', 'engine = "lab:ENGINE"', 'factor = "method"',
        f"seeds = {{ init = {list(inits)}, data = {data!r} }}".replace("'", '"'),
    ]  # fmt: skip
    order.shuffle(head)
    tables = [
        "[study]\n" + "\n".join(head),
        *(f'[arms.{name}]\nmethod = "{name}"' for name in arms),
        "[grid]\n" + "\n".join(f"{k} = {list(v)}" for k, v in order.shuffled(grid)),
    ]
    order.shuffle(tables)
    return "\n".join(tables)


class Order:
    """A source of order for one example."""

    def __init__(self, random):
        self.random = random

    def shuffle(self, items):
        self.random.shuffle(items)

    def shuffled(self, mapping):
        items = list(mapping.items())
        self.shuffle(items)
        return items


ints = st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    arms=st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True),
    grid=st.fixed_dictionaries({}, optional={"width": ints, "lr": st.lists(
        st.floats(0.1, 9, allow_nan=False), min_size=1, max_size=3, unique=True)}),
    inits=ints,
    datas=st.none() | ints,
    first=st.randoms(use_true_random=False),
    second=st.randoms(use_true_random=False),
)  # fmt: skip
def test_expansion(tmp_path_factory, arms, grid, inits, datas, first, second):
    """Runs = arms × cells × seeds; identities and places are unique; order changes none of them."""
    folder = tmp_path_factory.mktemp("study")
    plans = [
        expand(load_study(write(folder, study_text(arms, grid, inits, datas, Order(random)))))
        for random in (first, second)
    ]
    num_cells = len(grid.get("width", [0])) * len(grid.get("lr", [0]))
    seeds = len(inits) * (1 if datas is None else len(datas))
    for runs in plans:
        assert len(runs) == len(arms) * num_cells * seeds
        assert len({r.identity for r in runs}) == len(runs)
        assert len({r.key for r in runs}) == len(runs)
        assert datas is not None or all(r.seeds["data"] == r.seeds["init"] for r in runs)
    places = [{(r.key, r.identity, r.cohort) for r in runs} for runs in plans]
    assert places[0] == places[1]


def test_one_cohort_is_what_differs_in_seeds_and_stackable_fields(tmp_path):
    """Seeds and stackable fields share a cohort; any other field does not."""
    claimless = STUDY.partition("[claims")[0]
    stacked = load(tmp_path, ("[config]", "[grid]\nlr = [0.1, 0.2]\n[config]"), text=claimless)
    assert len({r.cohort for r in expand(stacked)}) == 2
    apart = load(tmp_path, ("[config]", "[grid]\nalpha = [0.1, 0.2]\n[config]"), text=claimless)
    assert len({r.cohort for r in expand(apart)}) == 4
