"""`make demo`: its own study, shortened, through the commands that the Makefile runs."""

import re
from pathlib import Path

from project import Project

DEMO = Path(__file__).parents[2] / "studies" / "addition" / "d8.toml"
SHORTER = {
    r"seeds = \{ init = \[.*?\]": "seeds = { init = [42, 43, 44]",
    r"budget = \{ steps = 12000 \}": "budget = { steps = 20 }",
    r"warmup_steps = 1200": "warmup_steps = 5\nval_size = 50\ntest_size = 50",
    r"curriculum = \[\[1, 3, 1000\].*": "curriculum = [[1, 3, 20]]",
    r"batch_size = 512": "batch_size = 16",
}


def test_the_demo_is_judged(tmp_path):
    """No claim is without a verdict: nothing is wrong with the comparison of its two arms."""
    text = DEMO.read_text("utf-8").split("[[reported]]")[0]
    for pattern, short in SHORTER.items():
        text, count = re.subn(pattern, short, text, count=1)
        assert count == 1, pattern
    project = Project(tmp_path)
    project.write("studies/d8.toml", text)
    project.commit()
    project("run", "studies/d8.toml")
    judged = project.json("verdict", "d8", code=None)
    states = {claim["name"]: claim["verdict"] for claim in judged["judgements"]}
    assert states["parameter-count"] == "PASS"
    assert "INVALID" not in states.values(), judged
