"""`make demo`: its own study, shortened, through the commands that the Makefile runs."""

from pathlib import Path

from project import Project

DEMO = Path(__file__).parents[2] / "studies" / "addition" / "d8.toml"
SHORT = """
[scales.short]
says = "20 steps of three seeds"
seeds = { init = [42, 43, 44], data = "init" }
budget = { steps = 20 }
config = { batch_size = 16, warmup_steps = 5, val_size = 50, test_size = 50, curriculum = [[1, 3, 20]] }
"""


def test_the_demo_is_judged(tmp_path):
    """No claim is without a verdict: nothing is wrong with the comparison of its two arms."""
    project = Project(tmp_path)
    project.write("studies/d8.toml", DEMO.read_text("utf-8") + SHORT)
    project.commit()
    project("run", "studies/d8.toml", "--scale", "short")
    judged = project.json("verdict", "d8.short", code=None)
    verdicts = {claim["name"]: claim["verdict"] for claim in judged["judgements"]}
    assert verdicts["parameter-count"] == "PASS"
    assert "INVALID" not in verdicts.values(), judged
