"""Versioned re-analysis and what an invalidation strikes, through the command line.

S0 measured an agreement of 0.997, corrected it to 0.687 (decoded) and to 0.756 (overlap only); its
first entry was never marked as superseded. Here all three stand side by side.
"""

import json

import pytest
from project import Project

CLIENT = """
import json, sys, assay
with assay.init() as run:
    shift = float(sys.argv[1]) + int(sys.argv[2]) / 1000
    run.save("signs.json", json.dumps({"raw": 0.9970 - shift, "decoded": 0.6867 - shift,
                                       "overlap": 0.7564 - shift}).encode())
    run.summary({"train/loss_nats": 8.0 + shift})
"""
ANALYSIS = """
import json

def agreement(artifacts, run):
    assert run["arm"] in ("same", "other") and run["seeds"]
    return {"sync/agreement": json.loads(artifacts["signs.json"].read_text())["raw"]}
"""
STUDY = """
[study]
id = "signs"
question = "Do the clients' signs agree?"
factor = "shift"
baseline = "same"
seeds = { data = [1, 2, 3] }
cmd = "python client.py {shift} {seed.data}"
[arms.same]
shift = 0.0
[arms.other]
shift = 0.2
[analyses.agreement]
function = "analysis:agreement"
version = 1
says = "Share of equal signs, of the raw updates."
metrics = ["sync/agreement"]
artifacts = ["signs.json"]
[claims.nearly-all]
says = "Nearly all signs agree."
criterion = 'mean("sync/agreement", "same") > 0.9'
phase = "pilot"
[claims.pinned]
says = "In the first version nearly all signs agreed."
criterion = 'mean("sync/agreement@1", "same") > 0.9'
phase = "pilot"
"""


@pytest.fixture
def project(tmp_path):
    project = Project(tmp_path)
    project.write("client.py", CLIENT)
    project.write("analysis.py", ANALYSIS)
    project.write("studies/signs.toml", STUDY)
    project("run", "signs")
    return project


def revise(project, number, key):
    """The next version of the analysis, computed."""
    text = project.root.joinpath("studies/signs.toml").read_text()
    project.write(
        "studies/signs.toml", text.replace(f"version = {number - 1}", f"version = {number}")
    )
    before = {2: "raw", 3: "decoded"}[number]
    code = project.root.joinpath("analysis.py").read_text()
    project.write("analysis.py", code.replace(f'"{before}"', f'"{key}"'))
    project("analyse", "signs")


def verdicts(project):
    found = project.json("verdict", "signs", code=None)["judgements"]
    return {j["name"]: j["verdict"] for j in found}


def test_three_versions_stand_side_by_side(project):
    """A newer version adds values; a claim reads the version of the file, or one by name."""
    assert verdicts(project) == {"nearly-all": "INCONCLUSIVE", "pinned": "INCONCLUSIVE"}
    told = project("analyse", "signs").stdout
    assert "agreement@1: 6 run(s) analysed, 0 had it already." in told
    assert "agreement@1: 0 run(s) analysed, 6 had it already." in project("analyse", "signs").stdout
    assert verdicts(project) == {"nearly-all": "PASS", "pinned": "PASS"}
    revise(project, 2, "decoded")
    assert verdicts(project) == {"nearly-all": "FAIL", "pinned": "PASS"}
    revise(project, 3, "overlap")
    rows = project.json("table", "signs", "--analysis-versions")
    means = {r["version"]: round(r["mean"], 3) for r in rows if r["arm"] == "same"}
    assert means == {1: 0.995, 2: 0.685, 3: 0.754}
    shown = project("table", "signs", "--analysis-versions").stdout
    assert "version 3 (claims read it)" in shown
    assert "0.995 ± 0.001 [3]" in shown
    project("log")
    assert "`sync/agreement`" in project.root.joinpath("EXPERIMENTS.md").read_text()
    files = list(project.root.glob("runs/signs/*/*/*/analysis-agreement-v*.json"))
    assert len(files) == 18


def test_one_version_is_one_computation(project):
    """Code that changes within a version is refused; a changed result counts nowhere."""
    project("analyse", "signs")
    project.write("analysis.py", ANALYSIS.replace('"raw"', '"decoded"'))
    told = project.refused("analyse", "signs")
    assert "version 1 was computed by other code" in told
    assert "raise it to 2" in told
    path = next(project.root.glob("runs/signs/same/*/*/analysis-*.json"))
    path.write_text(path.read_text().replace("0.99", "0.19"))
    (path.parent / "touched").touch()
    assert "was changed after it was computed" in project("log", "--check", code=1).stdout


def test_what_an_analysis_lacks_is_told(project):
    """An artifact that is not there, a function that is not there, one that gives no number."""
    text = STUDY.replace('artifacts = ["signs.json"]', 'artifacts = ["grads.bin"]')
    project.write("studies/signs.toml", text)
    told = project("analyse", "signs", code=1).stdout
    assert "has no artifact grads.bin" in told
    assert "It has: signs.json" in told
    project.write("studies/signs.toml", STUDY.replace("analysis:agreement", "analysis:nothing"))
    assert "must be importable" in project.refused("analyse", "signs")
    project.write("studies/signs.toml", STUDY)
    project.write(
        "analysis.py", "def agreement(artifacts, run):\n    return {'sync/agreement': 'y'}\n"
    )
    assert "values must be numbers" in project("analyse", "signs", code=1).stdout
    project.write("analysis.py", "def agreement(artifacts, run):\n    return {'loss': 1.0}\n")
    assert "for each of its metrics, sync/agreement" in project("analyse", "signs", code=1).stdout
    assert "unknown analysis 'z'" in project.refused("analyse", "signs", "z")


def test_failures_that_repeat_are_told_twice_and_counted(project):
    """90 files and six runs are not all named: the first two of each, how many more, the way out."""
    files = """
for n in range(90):
    run.save(f"payload-{n:05d}.bin", b"x")
"""
    project.write("client.py", CLIENT.rstrip() + files.replace("\n", "\n    "))
    project("run", "signs", "--again")
    text = STUDY.replace('artifacts = ["signs.json"]', 'artifacts = ["grads.bin"]')
    project.write("studies/signs.toml", text)
    told = project("analyse", "signs", code=1).stdout
    assert told.count("has no artifact grads.bin") == 2
    assert "… and 4 more run(s)" in told
    assert "signs.json, payload-00000.bin and 89 more" in told
    assert "Correct `artifacts` in [analyses.agreement]" in " ".join(told.split())
    assert len(told) < 1000


def test_an_analysis_is_struck_with_all_that_rests_on_it(project):
    """Its values leave the evidence in every run, are told with the reason, and come back."""
    project("analyse", "signs")
    revise(project, 2, "decoded")
    told = project(
        "invalidate", "analysis:signs/agreement@1", "--because", "compared encoded signs"
    ).stdout
    assert "pinned: PASS → INCONCLUSIVE" in told
    assert verdicts(project) == {"nearly-all": "FAIL", "pinned": "INCONCLUSIVE"}
    project("log")
    log = project.root.joinpath("EXPERIMENTS.md").read_text()
    assert "invalidate: analysis:signs/agreement@1 because compared encoded signs" in log
    assert "is invalidated already" in project.refused(
        "invalidate", "analysis:signs/agreement@1", "--because", "x"
    )
    project("restore", "analysis:signs/agreement@1", "--because", "it was right")
    assert verdicts(project)["pinned"] == "PASS"
    told = project.refused("invalidate", "analysis:signs/agreement@9", "--because", "x")
    assert "agreement@1, agreement@2" in told


def test_an_artifact_is_struck_with_its_analyses(project):
    """The analysis of that run leaves the evidence; what the run measured itself stays."""
    project("analyse", "signs")
    run = next(r for r in project.json("ls", "signs") if r["arm"] == "same")
    (sha,) = project.json("show", run["id"])["artifacts"].values()
    assert f"artifact signs.json: sha256 {sha}" in project("show", run["id"]).stdout
    told = project("invalidate", f"artifact:{sha[:12]}", "--because", "truncated").stdout
    assert f"artifact:{sha} is out of evidence" in told
    assert "nearly-all: PASS → INCONCLUSIVE" in told
    rows = {(r["arm"], r["metric"]): r for r in project.json("table", "signs", "sync/agreement",
                                                              "train/loss_nats")["rows"]}  # fmt: skip
    assert len(rows["same", "sync/agreement"]["seeds"]) == 2
    assert len(rows["same", "train/loss_nats"]["seeds"]) == 3
    assert "0 artifacts begin with" in project.refused(
        "invalidate", "artifact:ffffffffffff", "--because", "x"
    )
    assert json.loads(project("ls", "signs", "--json").stdout)
