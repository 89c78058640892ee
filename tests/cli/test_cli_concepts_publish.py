"""`assay concepts registry`: every pretraining run of the lab in one table."""

import json
import zipfile

import pytest
from project import Project
from safetensors.torch import load

STUDY = """
[study]
id = "tiny"
question = "Does it run?"
engine = "concepts"
task = "pretrain"
factor = ["concept_losses"]
baseline = "none"
seeds = { init = [1], data = 0 }
budget = { steps = 2 }
phase = "pilot"
[config]
train_blocks = 40
held_blocks = 8
vocab_size = 300
hidden = 32
layers = 1
inner = 32
seq_len = 32
slots = 4
batch = 4
[arms.none]
[arms.combined]
concept_losses = ["combined"]
[claims.c]
says = "It pays."
criterion = 'diff("test/loss_nats", "combined", "none") > 0'
phase = "pilot"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose study has run."""
    project = Project(tmp_path_factory.mktemp("registry"))
    project.write("studies/tiny.toml", STUDY)
    project("run", "studies/tiny.toml")
    return project


def test_the_registry_names_runs_as_the_source_did(project):
    rows = json.loads(project("concepts", "registry", "--json").stdout)
    assert [row["concept_losses"] for row in rows] == ["combined (fixed 0.1)", "none"]
    assert all(row["run"].startswith("perceiver_mlm_H32L1C4_2") for row in rows)
    assert all(row["status"] == "completed" and float(row["task_loss"]) > 0 for row in rows)
    assert all(row["texts"] == 8 and row["data"] == "python" for row in rows)
    assert all(row["architecture"] == "perceiver_mlm_H32L1C4" for row in rows)
    assert {row["objective"] for row in rows} == {"mlm"}
    assert all(row["epochs"] == "0.2" and row["conclusion"] is None for row in rows)
    assert "concept losses" in project("concepts", "registry", "tiny").stdout


def test_a_models_card_is_written_beside_it(project):
    """And nothing is uploaded; a name that is no repository's is refused before."""
    small = (
        "train_blocks=40",
        "held_blocks=8",
        "vocab_size=300",
        "seq_len=32",
        "batch=4",
        "inner=32",
    )
    sizes = ("--hidden", "32", "--layers", "1", "--slots", "4", "--steps", "2", "--quiet")
    project("concepts", "pretrain", "one", *sizes, "--set", *small)
    assert "OWNER/NAME" in project.refused("concepts", "publish", "one", "small", "--dry-run")
    card = project.root / "one" / "model" / "README.md"
    assert "identifier" in project.refused(
        "concepts", "publish", "one", "me/small", "--license", "Apache 2.0", "--dry-run"
    )
    assert not card.exists()
    project("concepts", "publish", "one", "me/small", "--license", "mit", "--dry-run")
    assert "license: mit" in card.read_text()
    assert "A text as 4 concept vectors of 32 numbers" in card.read_text()
    assert "| seeds | data 0, init 0 |" in card.read_text()
    told = json.loads((project.root / "one" / "config.json").read_text())
    assert f"| corpus, sha256 | {told['data']['corpus python']} |" in card.read_text()


def test_plain_encoders_are_called_by_the_layers_that_they_have(tmp_path):
    """Counted in what was stored; they are not those of the setting."""
    project = Project(tmp_path)
    plain = STUDY.replace('"tiny"', '"plain"').replace("concept_losses", "objective")
    plain = plain.replace("layers = 1", 'layers = 2\narchitecture = "bert"')
    plain = plain.replace('objective = ["combined"]', 'objective = "span"')
    project.write("studies/plain.toml", plain)
    project("run", "studies/plain.toml")
    rows = json.loads(project("concepts", "registry", "plain", "--json").stdout)
    (archive, *_) = (project.root / "runs" / "plain").rglob("*-model.zip")
    with zipfile.ZipFile(archive) as stored:
        names = load(stored.read("model.safetensors")).keys()
    layers = {name.split(".")[3] for name in names if name.startswith("bert.encoder.layer.")}
    assert len(layers) != 2
    expected = {f"bert_{kind}_H32L{len(layers)}" for kind in ("mlm", "span")}
    assert {row["architecture"] for row in rows} == expected
    assert {row["run"].rsplit("_", 2)[0] for row in rows} == expected
    for archive in (project.root / "runs" / "plain").rglob("*-model.zip"):
        archive.write_bytes(b"")
    rows = json.loads(project("concepts", "registry", "plain", "--json").stdout)
    assert {row["architecture"] for row in rows} == {"bert_mlm_H32", "bert_span_H32"}


def test_a_studys_run_as_a_folder_of_pretrain(project):
    """What is done with one can be done with the other; another run is refused there, and one without a model."""
    rows = json.loads(project("concepts", "registry", "--json").stdout)
    first, second = (row["id"] for row in rows)
    assert "wrote out: tiny, combined, seed 1" in project("concepts", "unpack", first, "out").stdout
    final = json.loads((project.root / "out" / "summary.json").read_text())
    assert f"{final['test/loss_nats']:.4g}" == rows[0]["task_loss"]
    assert final["spent/steps"] == 2
    project("concepts", "analyze", "out/model", "--count", "8", code=1)
    project("concepts", "publish", "out", "team/tiny", "--dry-run")
    assert "combined" in (project.root / "out" / "model" / "README.md").read_text()
    assert "another configuration" in project.refused("concepts", "unpack", second, "out")
    assert "run of a study 'nosuch'" in project.refused("concepts", "registry", "nosuch")
    assert "No run" in project.refused("concepts", "unpack", "nothing", "out2")
    assert not (project.root / "out2").exists()


def test_the_registry_as_a_page(project):
    """With what the study's note says first."""
    project.write("notes/tiny.md", "It runs,\n2<!--assay:tiny/none x--> steps. And more.\n")
    lines = project("concepts", "registry", "--markdown").stdout.splitlines()
    assert lines[0].startswith(
        "| date | run | id | study | architecture | objective | data | machine |"
    )
    assert len({line.count(" | ") for line in lines}) == 1
    assert len(lines) == 4
    assert all(line.endswith("| It runs, 2 steps. |") for line in lines[2:])
