"""`assay concepts evaluate`, from a terminal."""

import json
import subprocess
import sys

import polars as pl
import pytest
from project import Project
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from assay.engines.concepts.configuration import ConceptConfig
from assay.engines.concepts.models import ConceptForMaskedLM

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", *(f"w{i}" for i in range(26))]
SMALL = ("--tasks", "sst2,mrpc", "--epochs", "1", "--seeds", "0,1", "--set", "max_length=16")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with two checkpoints and two tasks."""
    project = Project(tmp_path_factory.mktemp("evaluate"))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )  # fmt: skip
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16, "max_position_embeddings": 16}  # fmt: skip
    ConceptForMaskedLM(ConceptConfig(concept_num=2, **sizes)).save_pretrained(project.root / "ours")
    BertForMaskedLM(BertConfig(**sizes)).save_pretrained(project.root / "bert")
    for name in ("ours", "bert"):
        tokenizer.save_pretrained(project.root / name)
    for task, columns in (("sst2", ("sentence",)), ("mrpc", ("sentence1", "sentence2"))):
        folder = project.root / "data" / "glue" / task
        folder.mkdir(parents=True)
        for at, part in enumerate(("train", "validation")):
            texts = [f"{WORDS[4 + i % 2]} {WORDS[6 + i % 26]} w{i // 26} w{at}" for i in range(48)]
            columns_of = dict.fromkeys(columns, texts) | {"label": [i % 2 for i in range(48)]}
            pl.DataFrame(columns_of).write_parquet(folder / f"{part}-00000.parquet")
    return project


def test_a_table_beside_baselines(project):
    """Parts, metrics, mean ± std [n]; the report's files hold the same numbers; progress on stderr."""
    environment = {"ASSAY_DATA": str(project.root), "OMP_NUM_THREADS": "1"}
    done = project(
        "concepts", "evaluate", "ours", *SMALL, "--head", "mean", "--report", "out", "--frozen",
        **environment,
    )  # fmt: skip
    out = done.stdout
    assert "sst2: 43 to learn from, 5 to choose on (10% of train, held out; by accuracy)" in out
    assert "reported: 48 (official validation, as in" in out
    assert "majority  bag of words  linear probe" in out
    assert "ours, mean" in out
    assert out.count("[2]") >= 4
    assert "mrpc: seed 1: epoch 1 of 1, accuracy " in done.stderr
    names = sorted(path.name for path in (project.root / "out").iterdir())
    assert len(names) == 6
    assert sum(name.startswith("glue-sst2-ours-") for name in names) == 3


def test_plain_data_of_a_bert(project):
    """One JSON document; nothing else is printed. The BERT has no head of ours."""
    environment = {"ASSAY_DATA": str(project.root), "OMP_NUM_THREADS": "1"}
    words = ("concepts", "evaluate", "bert", *SMALL, "--examples", "30", "--json", "--quiet")
    done = project(*words, **environment)
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert [each["task"] for each in found] == ["sst2", "mrpc"]
    assert found[0]["sizes"] == {"train": 27, "chosen": 3, "reported": 48}
    assert found[0]["rows"]["majority"] == {"accuracy": [0.5]}
    assert len(found[1]["rows"]["fine-tuned"]["f1"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ours", "--tasks", "wnli"), "must be one of cola"),
        (("ours", "--tasks", "rte,rte"), "--tasks takes different ones"),
        (("ours", "--tasks", "rte"), "ASSAY_DATA is not set"),
        (("ours", "--seeds", "1,1"), "--seeds takes different ones from 0"),
    ],
)
def test_mistakes_are_told(project, words, says):
    """In one paragraph, before anything is computed."""
    assert says in project.refused("concepts", "evaluate", *words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ours", "--set", "rate=1"), "unknown setting 'rate'. Known settings: batch, clip"),
        (("ours", "--set", "epochs=3"), "give it as --epochs"),
        (("ours", "--epochs", "0"), "epochs must be 1 or more; got 0"),
        (("nowhere",), "there is no folder 'nowhere'. Correct it, or write hub:nowhere"),
    ],
)
def test_wrong_settings_are_told(project, words, says):
    """Where the tasks are there. A mistyped folder is not looked for on the hub."""
    command = ("concepts", "evaluate", *words, "--tasks", "sst2")
    assert says in project.refused(*command, ASSAY_DATA=str(project.root))


def test_help_loads_no_torch():
    """Nor transformers, scikit-learn or datasets: they take seconds."""
    code = (
        "import sys; import assay.cli.concepts; "
        "print(sorted({'torch', 'transformers', 'sklearn', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
