"""`assay concepts evaluate`, from a terminal."""

import json
import shutil
import subprocess
import sys

import polars as pl
import pytest
from project import Project
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from assay.cli.concepts_evaluate import How, Which
from assay.core.errors import ConfigError
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
    assert "longer than max_length" not in out
    assert "ours, mean" in out
    assert "no plain encoder beside it" in out
    assert out.count("[2]") >= 4
    assert "mrpc: seed 1: epoch 1 of 1, accuracy " in done.stderr
    names = sorted(path.name for path in (project.root / "out").iterdir())
    assert len(names) == 8
    assert sum(name.startswith("glue-sst2-ours-") for name in names) == 4


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


def test_another_checkpoint_beside_it(project):
    """Its fine-tuning is a row of the same table, in the report's files too, and is what it is alone."""
    environment = {"ASSAY_DATA": str(project.root), "OMP_NUM_THREADS": "1"}
    words = ("concepts", "evaluate", "ours", *SMALL, "--frozen", "--json")
    found = json.loads(
        project(*words, "--beside", "bert", "--report", "both", **environment).stdout
    )
    alone = json.loads(project(*(words[:2]), "bert", *words[3:], "--quiet", **environment).stdout)
    for one, other in zip(found, alone, strict=True):
        name = f"bert ({other['runs'][0]['parameters']:,} parameters)"
        for way in ("linear probe", "linear probe, untrained", "fine-tuned"):
            assert one["rows"][f"{name}, {way}"] == other["rows"][way]
        assert one["runs"][0]["history"] != other["runs"][0]["history"]
    (table,) = (project.root / "both").glob("glue-sst2-*-results.csv")
    assert table.read_text().count('\nsst2,"bert (') == 5
    project("concepts", "evaluate", "ours", *SMALL, "--beside", "nothing", code=2, **environment)


def test_a_tokenizer_with_more_tokens_than_a_bert_is_told(project, tmp_path):
    """Where BERT itself would look beyond its table."""
    shutil.copytree(project.root / "bert", tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    tokenizer.add_tokens(["new"])
    tokenizer.save_pretrained(tmp_path / "bert")
    words = ("concepts", "evaluate", str(tmp_path / "bert"), *SMALL)
    said = project.refused(*words, ASSAY_DATA=str(project.root))
    assert f"knows vocab_size = {len(WORDS)} tokens, and the tokenizer has {len(WORDS) + 1}" in said


def test_texts_that_are_cut_are_told(project):
    """Five words and three special tokens do not fit into six places."""
    words = ("concepts", "evaluate", "ours", "--tasks", "mrpc", "--epochs", "1", "--seeds", "0")
    out = project(
        *words, "--set", "max_length=6", ASSAY_DATA=str(project.root), OMP_NUM_THREADS="1"
    ).stdout
    assert "longer than max_length = 6 tokens, and cut: 100.0% of train, " in out


def test_the_training_part_is_not_reported_on(project):
    words = ("concepts", "evaluate", "bert", *SMALL, "--reported", "train")
    said = project.refused(*words, ASSAY_DATA=str(project.root))
    assert "had no say in anything; got train" in said


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (lambda: Which(tasks="wnli").load(), "must be one of cola"),
        (lambda: Which(tasks="rte,rte").load(), "--tasks takes different ones"),
        (lambda: How(seeds="1,1").chosen, "--seeds takes numbers from 0 on, each once"),
        (lambda: How(set_=["rate=1"]).config, "unknown setting 'rate'. Known settings: batch, cl"),
        (lambda: How(set_=["epochs=3"]).config, "give it as --epochs"),
        (lambda: How(epochs=0).config, "epochs must be 1 or more; got 0"),
    ],
)
def test_wrong_options_are_told(asked, says):
    """Which, the rule, and the value."""
    with pytest.raises(ConfigError, match=says):
        asked()


def test_mistakes_end_the_command(project):
    """In one paragraph. A mistyped folder is not looked for on the hub."""
    command = ("concepts", "evaluate", "nowhere", "--tasks", "sst2")
    assert "ASSAY_DATA is not set" in project.refused(*command)
    said = project.refused(*command, ASSAY_DATA=str(project.root))
    assert "there is no folder 'nowhere'. Correct it, or write hub:nowhere" in said


def test_help_loads_no_torch():
    """Nor transformers, scikit-learn or datasets: they take seconds."""
    code = (
        "import sys; import assay.cli.concepts; "
        "print(sorted({'torch', 'transformers', 'sklearn', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
