"""How long a user waits for nothing: `assay --help` (target 150 ms), `import assay` (80 ms)."""

import subprocess
import sys
from pathlib import Path

import pytest

ASSAY = Path(sys.executable).parent / "assay"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([sys.executable, "-c", "pass"], id="python"),
        pytest.param([sys.executable, "-c", "import assay"], id="import-assay"),
        pytest.param([sys.executable, "-c", "import assay; assay.init"], id="import-recorder"),
        pytest.param([ASSAY, "--help"], id="help"),
        pytest.param([ASSAY, "ls"], id="ls-of-nothing"),
    ],
)
def test_start(benchmark, command, tmp_path):
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "ASSAY_CACHE": str(tmp_path)}
    benchmark.pedantic(
        subprocess.run,
        (command,),
        {"check": True, "stdout": subprocess.DEVNULL, "cwd": tmp_path, "env": env},
        rounds=10,
        warmup_rounds=2,
    )
