import itertools
import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.core.contract import Realised, check, summarise
from assay.core.provenance import capture, clean_environment, flat

SALT = b"s" * 32
TIMES = itertools.count(1.5)
LEAK = "PSYCHE_DONT_SHARE_PREFIX"
BASE = {
    "code.commit": "c1",
    "code.dirty": False,
    "code.diff_sha256": None,
    "code.tree_sha256": "t1",
    "code.source_sha256": "s1",
    "packages.torch": "2.13.0",
    "python.version": "3.11.7",
    "env.HOME": "hmac:k1:aaa",
    "machine.host": "odra",
    "machine.cpu": "xeon",
    "device": "cpu",
    "engine.name": "credit",
    "data.train": "d1",
    "config.width": 128,
    "config.optimizer.lr": 0.01,
    "budget.epochs": 80,
    "spent.epochs": 80,
    "spent.wall_s": 1.0,
}


def run(arm, seed=1, cell="all", results=None, **facts):
    named = {k.replace("__", "."): v for k, v in facts.items()}
    base = {**BASE, "seed.init": seed, "spent.wall_s": next(TIMES), **named}
    return Realised(
        run_id=f"{arm}-{cell}-{seed}", arm=arm, cell=cell, seed=str(seed), facts=base,
        results_sha256=results,
    )  # fmt: skip


def arms(*settings, seeds=(1, 2, 3), **common):
    """Runs of arms a, b, c, … with these facts, on the same seeds."""
    return [
        run("abcdefgh"[i], seed, **{**common, **facts})
        for i, facts in enumerate(settings)
        for seed in seeds
    ]


def judge(runs, factor=("method",), engine="credit", **more):
    names = sorted({r.arm for r in runs})
    return check(runs, arms=names, factor=factor, engine=engine, **more)


def command(line, seed=1, arm="a", **facts):
    """A run of a command line, its facts taken as `flat` gives them."""
    parsed = flat({"argv": shlex.split(line)})
    base = run(arm, seed, **facts)
    return Realised(
        run_id=base.run_id, arm=arm, cell="all", seed=str(seed), facts={**base.facts, **parsed}
    )


METHODS = ({"config__method": "dfa"}, {"config__method": "bp"})


def only(contract, kind):
    found = [f for f in contract.findings if f.kind == kind]
    assert len(found) == 1, contract.findings
    return found[0]


# ---- what is meant ------------------------------------------------------------------------


def test_arms_that_differ_in_the_factor_alone_have_no_finding():
    """A clean comparison: nothing to report, and the difference is on record."""
    contract = judge(arms(*METHODS))
    assert contract.findings == ()
    assert contract.differences == {"config.method": {"a": "'dfa'", "b": "'bp'"}}
    assert contract.num_pairs == 3


@pytest.mark.parametrize(
    ("lines", "way_out"),
    [(("p --m 1 --port 1", "p --m 2 --port 2"), "port"), (("p one --m 1", "p two --m 2"), "cmd")],
)
def test_the_way_out_of_a_confound_works(lines, way_out):
    """Declared as the message says, the difference is no finding any more."""
    runs = [command(line, arm=arm) for arm, line in zip("ab", lines, strict=True)]
    finding = only(judge(runs, factor=("m",), engine=None), "confounded")
    assert f"declare '{way_out}'" in finding.message
    assert judge(runs, factor=("m", way_out), engine=None).findings == ()


def test_what_lies_below_the_factor_may_differ():
    """A factor that is a table covers every key in it."""
    runs = arms({"config__optimizer__lr": 0.1, "config__optimizer__name": "sgd"}, {})
    assert judge(runs, factor=("optimizer",)).findings == ()


def test_time_is_a_cost_and_no_difference():
    """Wall-clock time differs between any two runs and confounds nothing."""
    runs = arms(*METHODS)
    assert len({r.facts["spent.wall_s"] for r in runs}) == len(runs)
    assert judge(runs).findings == ()


def test_a_committed_document_between_engine_arms_is_no_confound():
    """Arms of an engine are compared by the source that ran, not by the commit."""
    runs = arms(METHODS[0], {**METHODS[1], "code__commit": "c2", "code__tree_sha256": "t2"})
    assert judge(runs).findings == ()


def test_another_source_between_engine_arms_confounds():
    """Another source is another method, whatever the commit says."""
    runs = arms(METHODS[0], {**METHODS[1], "code__source_sha256": "s2"})
    assert only(judge(runs), "confounded").keys == ("code.source_sha256",)


@pytest.mark.parametrize(
    "change",
    [
        {"code__commit": "c2", "code__tree_sha256": "t2"},
        {"code__dirty": True, "code__diff_sha256": "d"},
    ],
)
def test_another_commit_or_diff_between_commands_confounds(change):
    """What a command runs is in the repository: its commit and its changes are compared."""
    one = command("p --method dfa", arm="a")
    two = command("p --method bp", arm="b", **change)
    finding = only(judge([one, two], engine=None), "confounded")
    assert set(finding.keys) & {"code.tree_sha256", "code.diff_sha256"}


def test_committing_the_ledger_between_commands_is_no_confound():
    """A commit that leaves the tree without Assay's files as it was changes no code."""
    runs = [
        command("p --method dfa", arm="a"),
        command("p --method bp", arm="b", code__commit="c2"),
    ]
    assert judge(runs, engine=None).findings == ()


@pytest.mark.parametrize(
    ("lines", "factor"),
    [
        (("p t.py --method dfa", "p t.py --method=bp"), "method"),
        (("p t.py --learning-rate 1", "p t.py --learning-rate 2"), "learning_rate"),
        (("p t.py --optim.lr 1", "p t.py --optim.lr 2"), "optim"),
        (("p t.py --fast", "p t.py"), "fast"),
        (("p t.py method=dfa", "p t.py method=bp"), "method"),
        (("p one.py -x", "q two.py --other 3 y"), "cmd"),
    ],
)
def test_the_option_of_the_factors_name_may_differ(lines, factor):
    """For commands the factor is the option of that name; `cmd` is the whole line."""
    runs = [command(line, arm=arm) for arm, line in zip("ab", lines, strict=True)]
    assert judge(runs, factor=(factor,), engine=None).findings == ()


@pytest.mark.parametrize("template", ["p {}", "p --out out/{}.csv", "p x --name={}_run t={}"])
def test_words_that_hold_the_factors_value_follow_from_it(template):
    """A command template fills the factor's value anywhere; that is no second difference."""
    runs = [
        command(template.format(*[value] * 2), arm=arm, config__method=value)
        for arm, value in (("a", "dfa"), ("b", "scalar-bridge"))
    ]
    assert judge(runs, engine=None).findings == ()


def test_a_file_that_the_factor_names_follows_from_it():
    """Another configuration file under `--config`: its content differs since its name does."""
    runs = [
        command("p --config a.toml", arm="a", **{"scripts__--config": "1"}),
        command("p --config b.toml", arm="b", **{"scripts__--config": "2"}),
    ]
    assert judge(runs, factor=("config",), engine=None).findings == ()


def test_a_file_that_changed_under_one_name_confounds():
    """The same script with another content in one arm is named."""
    runs = [
        command("p t.py --method a", arm="a", scripts__1="1"),
        command("p t.py --method b", arm="b", scripts__1="2"),
    ]
    assert only(judge(runs, engine=None), "confounded").keys == ("scripts.1",)


# ---- confounded ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("packages.torch", "2.12.0"),
        ("python.version", "3.12.0"),
        ("env.OMP_NUM_THREADS", "4"),
        ("env.HOME", "hmac:k1:bbb"),
        ("machine.host", "polonez"),
        ("device", "cuda"),
        ("engine.kernel", "avx512"),
        ("data.train", "d2"),
        ("config.width", 256),
        ("config.optimizer.lr", 0.02),
        ("seed.init", 7),
        ("anything.else", None),
    ],
)
def test_an_undeclared_difference_confounds_by_name(fact, value):
    """The key, both arms and the way out stand in the message, and it blocks."""
    runs = arms(METHODS[0], {**METHODS[1], fact.replace(".", "__"): value})
    contract = judge(runs)
    finding = only(contract, "confounded")
    assert finding.keys == (fact,)
    assert finding.arms == ("a", "b")
    assert fact in finding.message
    assert contract.blocking(["a", "b"]) == (finding,)


@pytest.mark.parametrize("fact", ["code.tree_sha256", "code.diff_sha256"])
def test_a_project_engine_is_compared_by_the_project_too(fact):
    """`module:NAME` may import any file of the project; an installed engine is its package."""
    code = {"code__source_sha256": "s", "code__tree_sha256": "t", "code__diff_sha256": "d"}
    runs = arms({**METHODS[0], **code}, {**METHODS[1], **code, fact.replace(".", "__"): "other"})
    assert only(judge(runs, engine="coin:ENGINE"), "confounded").keys == (fact,)
    assert judge(runs, engine="credit").findings == ()


def test_a_finding_blocks_only_statements_that_rest_on_it():
    """With three arms, two that agree can still be compared."""
    runs = arms(*METHODS, {"config__method": "cb", "device": "cuda"})
    contract = judge(runs)
    assert contract.blocking(["a", "b"]) == ()
    assert len(contract.blocking(["b", "c"])) == 1
    assert len(contract.blocking(["c"])) == 0
    assert len(contract.blocking()) == 1


def test_one_cause_is_one_finding():
    """Forty packages that differ are one finding; every key is in it, four in the sentence."""
    other = {f"packages__p{i}": "2" for i in range(40)}
    finding = only(judge(arms(METHODS[0], {**METHODS[1], **other})), "confounded")
    assert len(finding.keys) == 40
    assert "and 35 more" in finding.message


@pytest.mark.parametrize("key", ["env.PATH", "env.VIRTUAL_ENV", "installed.pytest"])
def test_another_shell_is_named_and_blocks_nothing(key):
    """A second terminal is no confound: what it could decide is recorded itself."""
    runs = arms(METHODS[0], {**METHODS[1], key.replace(".", "__"): "other"})
    contract = judge(runs)
    assert only(contract, "incidental").keys == (key,)
    assert contract.blocking() == ()


def test_arms_without_a_common_seed_are_compared_by_their_values():
    """Seeds differ by design then; the device still must not."""
    apart = [run("a", 1, config__method="x"), run("b", 2, config__method="y")]
    assert judge(apart).findings == ()
    apart[1] = run("b", 2, config__method="y", device="cuda")
    assert only(judge(apart), "confounded").keys == ("device",)


def test_a_seed_on_the_command_line_is_no_difference_between_unpaired_arms():
    """`--seed 1` against `--seed 2` follows from the seeds, and is no factor either."""
    runs = [command("p --m x --seed 1", 1, "a"), command("p --m y --seed 2", 2, "b")]
    assert judge(runs, factor=("m",), engine=None).findings == ()
    same = [command("p --m x --seed 1", 1, "a"), command("p --m x --seed 2", 2, "b")]
    assert only(judge(same, factor=("m",), engine=None), "no-op")


def test_digests_of_two_keys_are_not_compared():
    """A new key after a deleted cache makes no confound, and it is said."""
    runs = arms(METHODS[0], {**METHODS[1], "env__HOME": "hmac:k2:zzz"})
    contract = judge(runs)
    assert only(contract, "not-comparable").keys == ("env.HOME",)
    assert contract.blocking() == ()


# ---- no-op --------------------------------------------------------------------------------


def test_arms_without_any_difference_are_a_no_op():
    """Two names for one thing: reported by name, and no verdict."""
    contract = judge(arms({"config__method": "x"}, {"config__method": "x"}))
    finding = only(contract, "no-op")
    assert finding.arms == ("a", "b")
    assert "a and b" in finding.message
    assert contract.blocking(["a", "b"]) == (finding,)


def test_a_declared_setting_that_never_reaches_the_command_is_a_no_op():
    """The template forgot `{method}`: the study's arms differ, what ran does not."""
    runs = [
        command("p t.py --lr 1", arm=arm, config__method=method)
        for arm, method in (("a", "dfa"), ("b", "bp"))
    ]
    assert only(judge(runs, engine=None), "no-op").arms == ("a", "b")


def test_an_undeclared_difference_does_not_hide_a_no_op():
    """Arms equal in the factor are a no-op even if something else differs."""
    contract = judge(arms({"config__method": "x"}, {"config__method": "x", "device": "cuda"}))
    assert {f.kind for f in contract.findings} == {"no-op", "confounded"}


def test_a_no_op_in_some_pairs_is_found():
    """A leak into one seed of the arm without the setting counts."""
    runs = [
        run("off", 1), run("off", 2, env__X="1"), run("on", 1, env__X="1"),
        run("on", 2, env__X="1"),
    ]  # fmt: skip
    contract = judge(runs, factor=("env.X",))
    assert "in 1 of 2 pairs" in only(contract, "no-op").message
    assert only(contract, "mixed-versions").arms == ("off",)


def test_equal_results_of_every_pair_are_a_no_op():
    """S2's E38, attn-fixed off: the configuration differs and no number does."""
    settings = [
        ("base", {"config__attn_fixed": True}), ("attn-off", {"config__attn_fixed": False}),
        ("mlp-off", {"config__attn_fixed": True, "config__mlp_fixed": False}),
    ]  # fmt: skip
    runs = [
        run(arm, seed, results=f"{seed}{arm == 'mlp-off'}", **facts)
        for arm, facts in settings
        for seed in (1, 2, 3)
    ]
    finding = only(judge(runs, factor=("attn_fixed", "mlp_fixed")), "no-op")
    assert finding.arms == ("attn-off", "base")
    assert "no effect" in finding.message


def test_one_equal_pair_of_several_is_chance():
    """Only every pair makes it a no-op."""
    runs = [
        run(arm, seed, config__method=arm, results=f"{seed}" if seed == 1 else f"{seed}{arm}")
        for arm in "ab"
        for seed in (1, 2)
    ]
    assert judge(runs).findings == ()


def test_seeds_that_change_nothing_are_named():
    """An arm whose seeds agree to the last bit has one observation, not three."""
    runs = [run(arm, s, config__method=arm, results=arm) for arm in "ab" for s in (1, 2, 3)]
    contract = judge(runs)
    assert [f.arms for f in contract.findings if f.kind == "identical-results"] == [("a",), ("b",)]


# ---- versions and budgets -----------------------------------------------------------------


def test_versions_mixed_within_an_arm_are_named():
    """S2 pooled seeds across code versions; one arm is one version."""
    runs = arms(*METHODS)
    runs = [
        run(r.arm, 3, config__method=r.facts["config.method"], code__source_sha256="s2")
        if r.seed == "3" else r for r in runs
    ]  # fmt: skip
    contract = judge(runs)
    assert [(f.kind, f.arms) for f in contract.findings] == [
        ("mixed-versions", ("a",)), ("mixed-versions", ("b",)),
    ]  # fmt: skip
    assert len(contract.blocking(["a"])) == 1


def with_data(fingerprints):
    """Arms a and b on seeds 1, 2, …, whose training data have these fingerprints."""
    return [
        run(arm, i, config__method=arm, data__train=data)
        for arm in "ab"
        for i, data in enumerate(fingerprints, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("fingerprints", [("old", "old", "new"), ("old", "new", "new", "new")])
def test_a_file_that_changed_between_seeds_is_found(fingerprints):
    """A seed that was added after the text file was edited: the arm is no longer of one thing."""
    contract = judge(with_data(fingerprints))
    assert [(f.kind, f.arms, f.keys) for f in contract.findings] == [
        ("mixed-data", ("a",), ("data.train",)), ("mixed-data", ("b",), ("data.train",)),
    ]  # fmt: skip
    assert len(contract.blocking(["a"])) == 1


def test_data_that_a_seed_drew_are_no_finding():
    """Another seed, another sample: the fingerprint follows the seed. So it does one of two seeds."""
    assert judge(with_data(("d1", "d2", "d3"))).findings == ()
    crossed = [
        run(arm, f"{init}-{data}", config__method=arm, seed__init=init, seed__data=data, data__train=f"d{data}")
        for arm in "ab" for init in (1, 2) for data in (1, 2)
    ]  # fmt: skip
    assert judge(crossed).findings == ()
    both = [replace(r, facts={**r.facts, "data.train": r.seed}) for r in crossed]
    assert judge(both).findings == ()


def named(*parts):
    """Arms a and b on as many seeds as parts, whose data have these names and fingerprints."""
    return [
        run(arm, i, config__method=arm, **{f"data.{name}": f"of {name}" for name in names.split()})
        for arm in "ab"
        for i, names in enumerate(parts, 1)
    ]  # fmt: skip


def test_data_that_are_named_by_their_seed_are_no_finding():
    """`holdout 1` stands in the runs of data seed 1 only: `make demo` had no verdict for it."""
    assert judge(named("held1 test", "held2 test", "held3 test")).findings == ()
    crossed = [
        run(arm, f"{init}-{data}", config__method=arm, seed__init=init, seed__data=data, **{f"data.held{data}": "d"})
        for arm in "ab" for init in (1, 2) for data in (1, 2)
    ]  # fmt: skip
    assert judge(crossed).findings == ()


@pytest.mark.parametrize(
    ("parts", "keys"),
    [
        (("one", "one", "one two"), ("data.two",)),
        (("one two", "one", "one"), ("data.two",)),
        (("one", "two", "two"), ("data.one", "data.two")),
    ],
)
def test_a_file_that_came_or_went_between_seeds_is_found(parts, keys):
    """A name that stands in some runs only, and follows no seed."""
    found = judge(named(*parts)).findings
    assert [(f.kind, f.arms, f.keys) for f in found] == [
        ("mixed-data", ("a",), keys), ("mixed-data", ("b",), keys),
    ]  # fmt: skip


def test_an_arm_is_told_of_no_file_that_it_never_read():
    """Arm b has a file that came, and arm a has none of that name: the finding is of b alone."""
    runs = [
        replace(r, facts={k: v for k, v in r.facts.items() if r.arm == "b" or k != "data.two"})
        for r in named("one", "one", "one two")
    ]  # fmt: skip
    runs = [
        replace(r, facts={**r.facts, "data.three": 1}) if r.run_id == "a-all-1" else r for r in runs
    ]
    found = [(f.arms, f.keys) for f in judge(runs).findings if f.kind == "mixed-data"]
    assert found == [(("a",), ("data.three",)), (("b",), ("data.two",))]


def test_seeds_spread_evenly_over_machines_block_nothing():
    """Each pair ran on one machine: the spread is named, the comparison stands."""
    runs = [
        run(arm, seed, config__method=arm, machine__host=f"node{seed}")
        for arm in "ab"
        for seed in (1, 2)
    ]
    contract = judge(runs)
    assert {f.kind for f in contract.findings} == {"mixed-versions"}
    assert contract.blocking() == ()


def test_an_unequal_budget_is_named_unless_it_is_the_factor():
    """Another number of epochs spent: a confound by name, or the question itself."""
    runs = arms(METHODS[0], {**METHODS[1], "spent__epochs": 60})
    assert only(judge(runs), "unequal-budget").keys == ("spent.epochs",)
    runs = arms({"config__epochs": 80}, {"config__epochs": 60, "spent__epochs": 60})
    assert judge(runs, factor=("epochs",)).findings == ()


# ---- replays of the five logs -------------------------------------------------------------

S1 = "cargo run --release -p psyche-centralized-local-testnet -- start --headless "
S1_EXPERIMENTS = {
    "exp1": ("--num-clients 3 --client-matformer-tiers 0,0,0", 64),
    "exp2": ("--num-clients 3 --client-matformer-tiers 0,1,1", 65),
    "exp3": ("--num-clients 3 --client-matformer-tiers 0,0,1", 53),
    "exp5": ("--num-clients 4 --client-matformer-tiers 0,1,1,1", 65),
}


def test_s1_unequal_steps_and_clients_are_found():
    """S1 compared 53 to 65 steps, and exp5 with a fourth client, as if only tiers differed."""
    runs = [
        command((S1 + line).replace("-- ", ""), arm=arm, spent__steps=steps)
        for arm, (line, steps) in S1_EXPERIMENTS.items()
    ]
    contract = judge(runs, factor=("client-matformer-tiers",), engine=None)
    steps = only(contract, "unequal-budget")
    assert steps.keys == ("spent.steps",)
    assert "64 in exp1, 65 in exp2 and exp5, 53 in exp3" in steps.message
    clients = only(contract, "confounded")
    assert clients.keys == ("argv.--num-clients",)
    assert not steps.touches(["exp2", "exp5"])
    assert clients.touches(["exp2", "exp5"])


def test_s0_a_schedule_that_ends_elsewhere_confounds():
    """S0's L-only baseline: its cosine ends at step 19, that of SSSL at 40."""
    runs = [
        run("lonly", config__clients="0", config__lr_schedule__total_steps=19),
        run("sssl", config__clients="0,1,1,1", config__lr_schedule__total_steps=40),
    ]
    finding = only(judge(runs, factor=("clients",)), "confounded")
    assert finding.keys == ("config.lr_schedule.total_steps",)
    assert "19 in lonly, 40 in sssl" in finding.message


CLIENT = f"""
import json, os, sys
shared = os.environ.get("{LEAK}") != "1"
print(json.dumps({{"argv": sys.orig_argv, "env": dict(os.environ), "agreement": 0.5135 if shared
    else 1.0}}))
"""


@pytest.fixture
def client(tmp_path):
    """Starts S0's client as a real child and returns its run, as it saw itself."""
    (tmp_path / "client.py").write_text(CLIENT)
    home = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def start(arm, seed, *, declared=None, leaked=None, tiers="0,1,1,1"):
        env = {**clean_environment(home, declared or {}), **(leaked or {})}
        argv = [sys.executable, "client.py", "--tiers", tiers, "--seed", str(seed)]
        done = subprocess.run(argv, cwd=tmp_path, env=env, check=True, capture_output=True)
        seen = json.loads(done.stdout)
        facts = flat(
            capture(root=tmp_path, argv=seen["argv"], env=seen["env"], salt=SALT, declared=declared)
        )
        return Realised(
            run_id=f"{arm}{seed}", arm=arm, cell="all", seed=str(seed),
            facts={**facts, "seed.init": seed}, results_sha256=str((seen["agreement"], arm, seed)),
        )  # fmt: skip

    return start


def test_s0_a_variable_that_leaked_into_one_arm_confounds_by_name(client):
    """Nobody declared it, its value is stored nowhere, and it is still found."""
    runs = [client("small", s, tiers="0,1,1,1", leaked={LEAK: "1"}) for s in (1, 2)]
    runs += [client("large", s, tiers="0,0,0,0") for s in (1, 2)]
    contract = judge(runs, factor=("tiers",), engine=None)
    finding = only(contract, "confounded")
    assert finding.keys == (f"env.{LEAK}",)
    assert LEAK in finding.message
    assert "absent in large" in finding.message
    assert contract.blocking(["small", "large"]) == (finding,)


def test_s0_a_variable_that_leaked_into_every_arm_makes_a_no_op(client):
    """The arm that declares it and the arm that it leaked into are the same arm."""
    runs = [client("dont-share", s, declared={LEAK: "1"}) for s in (1, 2)]
    runs += [client("share", s, leaked={LEAK: "1"}) for s in (1, 2)]
    contract = judge(runs, factor=(f"env.{LEAK}",), engine=None)
    finding = only(contract, "no-op")
    assert finding.arms == ("dont-share", "share")
    assert LEAK in finding.message
    assert contract.blocking(["share", "dont-share"]) == (finding,)


def test_s0_without_the_leak_there_is_nothing_to_report(client):
    """The clean environment of a child keeps the caller's variables out."""
    runs = [client("dont-share", s, declared={LEAK: "1"}) for s in (1, 2)]
    runs += [client("share", s) for s in (1, 2)]
    contract = judge(runs, factor=(f"env.{LEAK}",), engine=None)
    assert contract.findings == ()
    assert contract.differences == {f"env.{LEAK}": {"dont-share": "'1'", "share": "absent"}}


# ---- laws ---------------------------------------------------------------------------------

FACTS = sorted(k for k in BASE if not k.startswith(("spent.wall", "code.", "budget", "seed")))


@st.composite
def experiments(draw):
    """Arms with the factor and a few arbitrary differences, on some seeds and cells."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=2, max_size=4, unique=True))
    runs = []
    for arm in names:
        method = draw(st.sampled_from("xyz"))
        for cell in ("c1", "c2"):
            for seed in (1, 2):
                if draw(st.booleans()) or (cell, seed) == ("c1", 1):
                    changed = draw(
                        st.dictionaries(st.sampled_from(FACTS), st.integers(0, 2), max_size=2)
                    )
                    facts = {k.replace(".", "__"): v for k, v in changed.items()}
                    results = draw(st.sampled_from(["r1", "r2", None]))
                    runs.append(run(arm, seed, cell, results, config__method=method, **facts))
    return runs


def findings(runs, **more):
    contract = judge(runs, **more)
    return {(f.kind, f.arms, f.keys, f.message, f.blocks, f.pairs) for f in contract.findings}


@given(experiments(), st.randoms(), st.sampled_from(["credit", None]))
def test_the_order_of_runs_and_arms_changes_nothing(runs, rng, engine):
    """Findings are a function of the set of runs."""
    shuffled = rng.sample(runs, len(runs))
    names = sorted({r.arm for r in runs}, reverse=True)
    other = check(shuffled, arms=names, factor=("method",), engine=engine)
    assert judge(runs, engine=engine).findings == other.findings


@given(experiments(), st.text(min_size=1), st.sampled_from(["credit", None]))
def test_a_fact_that_all_runs_share_changes_nothing(runs, name, engine):
    """Recording more about every run is never a finding."""
    more = [
        Realised(
            run_id=r.run_id, arm=r.arm, cell=r.cell, seed=r.seed,
            facts={**r.facts, f"new.{name}": 1}, results_sha256=r.results_sha256,
        )
        for r in runs
    ]  # fmt: skip
    assert findings(more, engine=engine) == findings(runs, engine=engine)


@given(
    st.one_of(
        st.sampled_from(FACTS), st.from_regex(r"[a-z]{1,8}\.[A-Za-z_-]{1,8}", fullmatch=True)
    ),
    st.sampled_from([0, None, "other", 2.5, [1], {"a": 1}]),
    st.lists(st.sampled_from([(c, s) for c in "pq" for s in (1, 2)]), min_size=1, unique=True),
)
def test_a_planted_difference_is_always_found_and_named(key, value, places):
    """Whatever fact differs beside the factor, in whichever pair, is named in a finding."""
    if key.startswith(("hmac.", "spent.", "config.method", "argv.", "scripts.", "binary.")):
        return
    runs = [
        run(arm, seed, cell, config__method=arm) for arm in "ab" for cell in "pq" for seed in (1, 2)
    ]
    planted = [
        Realised(
            run_id=r.run_id, arm=r.arm, cell=r.cell, seed=r.seed,
            facts={**r.facts, key: value} if r.arm == "b" and (r.cell, int(r.seed)) in places
            else r.facts,
        )
        for r in runs
    ]  # fmt: skip
    named = {k for f in judge(planted).findings if f.pairs for k in f.keys}
    assert named == {key}


def test_messages_are_one_sentence_each():
    """Every finding reads as one sentence and says what to do."""
    runs = arms(METHODS[0], {**METHODS[0], "device": "cuda", "spent__epochs": 1, "env__PATH": "x"})
    contract = judge(runs)
    assert len(contract.findings) == 4
    for finding in contract.findings:
        assert finding.message.endswith(".")
        assert ". " not in finding.message
        assert "; " in finding.message


def test_the_summary_tells_factor_pairs_and_findings():
    """The log gets what was compared, what differs as declared, and each finding."""
    clean = summarise(judge(arms(*METHODS)))
    assert (
        clean[0] == "2 arms, compared over 3 common pairs of cell and seed, may differ in: method."
    )
    assert clean[1] == "As declared, config.method is 'dfa' in a, 'bp' in b."
    assert clean[-1] == "Nothing else differs."
    contract = judge(arms(METHODS[0], {**METHODS[1], "device": "cuda"}))
    assert summarise(contract)[-1] == contract.findings[0].message


def test_an_arm_without_runs_is_said_and_blocks_nothing():
    """A study under way can be checked."""
    contract = check(arms(METHODS[0]), arms=["a", "b"], factor=["method"], engine="credit")
    assert contract.without_runs == ("b",)
    assert contract.findings == ()


def test_no_runs_at_all():
    """An empty study has an empty contract."""
    assert check([], arms=["a", "b"], factor=["method"]).findings == ()
