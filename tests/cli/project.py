"""A project in a folder of its own, and the real `assay` command as a child process.

The home directory is empty, the cache is the project's, and nothing of the caller's environment
gets through, so that a test sees what a fresh machine sees.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ASSAY = str(Path(sys.executable).parent / "assay")

TOY = """
import json, os, sys, time
from dataclasses import dataclass
from pathlib import Path
from assay.core.engine import Engine, Metric, Task

@dataclass(frozen=True, kw_only=True)
class Config:
    rate: float = 0.5
    steps: int = 10
    step_s: float = 0.0
    every: int = 5
    mishap: str = ""

def run(configs, contexts):
    values, starts = [], []
    for context in contexts:
        found = context.load_checkpoint()
        step, value = (0, context.seeds["init"] / 7) if found is None else (found[0], json.loads(found[1]))
        starts.append(step)
        values.append(value)
        print("seed", context.seeds["init"], "from", step, flush=True)
    mishap = configs[0].mishap
    if mishap == "raise" and not Path("mended").exists():
        raise ValueError("the toy is broken")
    if mishap == "exit":
        os._exit(7)
    if mishap == "segv":
        os.kill(os.getpid(), 11)
    if mishap == "nonsense":
        os.write(int(sys.argv[1]), b"no message\\n")
    if mishap == "environment":
        contexts[0].save("environment.json", json.dumps(dict(os.environ)).encode())
    assert len(set(starts)) == 1, starts
    for step in range(starts[0], configs[0].steps):
        for i, (config, context) in enumerate(zip(configs, contexts)):
            values[i] = (values[i] * 3.7 + config.rate) % 1.0
            context.log({"val/score": values[i]}, step=step)
            context.progress(step + 1, config.steps, {"loss": 1 - values[i], "exact match": values[i]})
        time.sleep(configs[0].step_s)
        stop = any([c.should_stop() for c in contexts])
        if (step + 1) % configs[0].every == 0 or stop:
            for context, value in zip(contexts, values):
                context.save_checkpoint(step + 1, json.dumps(value).encode())
        if stop:
            return
    for context, value in zip(contexts, values):
        context.save("last.json", json.dumps(value).encode())
        context.summary({"test/score": value})
        context.spent(steps=configs[0].steps)

ENGINE = Engine(name="toy", tasks={"train": Task(
    name="train", config=Config, seeds=("init",), run=run, budget=("steps",),
    metrics={"val/score": Metric(says="Score."), "test/score": Metric(says="Last.", goal="max")})})
"""

TOY_STUDY = """
[study]
id = "toy"
question = "Does the rate matter [a, b]?"
engine = "toy:ENGINE"
factor = "rate"
baseline = "low"
seeds = { init = [1, 2, 3] }
[config]
steps = 10
[arms.low]
rate = 0.25
[arms.high]
rate = 0.75
[claims.higher]
says = "The higher rate scores higher."
criterion = 'diff("test/score", "high", "low") > 0'
phase = "pilot"
"""

ADDITION_STUDY = """
[study]
id = "add"
question = "Does a tiny adder start better at 1/sqrt(d)?"
engine = "addition"
task = "train"
factor = "init"
seeds = { init = [1, 2], data = "init" }
budget = { steps = 400 }
[config]
d_model = 4
d_ff = 4
batch_size = 16
eval_interval = 20
warmup_steps = 10
val_size = 50
test_size = 50
test_seeds = [41]
[arms.scaled]
init = "scaled"
"""


class Project:
    """A project folder with a repository, and `assay` in it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "project"
        self.home = folder / "home"
        self.cache = folder / "cache"
        for path in (self.root / "studies", self.home, self.cache):
            path.mkdir(parents=True)
        self.write(".gitignore", "runs/\n__pycache__/\n")
        self.git("init", "-q")
        self.commit()

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.home),
            "ASSAY_CACHE": str(self.cache),
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            **more,
        }

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
        return subprocess.run(
            ["git", *who, *words], cwd=self.root, check=True, capture_output=True, text=True,
            env=self.environment(),
        ).stdout  # fmt: skip

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "state")

    def toy(self, study: str = TOY_STUDY, **changes: str) -> "Project":
        """The toy engine and its study, with `key = value` lines of [config] changed."""
        for key, value in changes.items():
            study = study.replace("[config]\n", f"[config]\n{key} = {value}\n")
            if key == "steps":
                study = study.replace("steps = 10\n", "")
        self.write("toy.py", TOY)
        self.write("studies/toy.toml", study)
        self.commit()
        return self

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        env = self.environment(**options.pop("env", {}))
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        return subprocess.Popen([ASSAY, *map(str, words)], cwd=self.root, env=env, **how)

    def __call__(
        self, *words: object, code: int | None = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `assay` to its end; `code` None: any exit code will do."""
        done = subprocess.run(
            [ASSAY, *map(str, words)], cwd=self.root, env=self.environment(**env), text=True,
            capture_output=True, timeout=100, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert code is None or done.returncode == code, (words, done)
        return done

    def refused(self, *words: object, code: int = 2, **env: str) -> str:
        """Run `assay` on a mistake: one paragraph on stderr, nothing else; returns it."""
        done = self(*words, code=code, **env)
        assert done.stderr.startswith("error: "), done
        assert done.stderr.endswith("\n"), done
        assert done.stderr.count("\n") == 1, done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return done.stderr

    def json(self, *words: object, code: int | None = 0) -> Any:
        return json.loads(self(*words, "--json", code=code).stdout)

    def folders(self, study: str = "*") -> list[Path]:
        return sorted(path.parent for path in self.runs.glob(f"{study}/*/*/*/run.json"))

    def folder(self, study: str = "scratch") -> Path:
        (folder,) = self.folders(study)
        return folder

    def results(self, study: str) -> dict[str, Any]:
        """Per arm and seed: digests of artifacts, and all rows of metrics without their times."""
        found = {}
        for run in self.json("ls", study):
            folder = self.runs / run["path"]
            artifacts = {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted((folder / "artifacts").rglob("*"))
                if path.is_file() and "manifest" not in path.name
            }
            key = (run["arm"], run["cell_label"], run["seed_label"])
            assert key not in found, key
            found[key] = (run["status"], run["results_sha256"], artifacts)
        return found


def attempts(folder: Path) -> list[str]:
    """How each attempt of a run ended, in order."""
    ends = sorted(folder.glob("end*.json"), key=lambda path: (len(path.name), path.name))
    return [json.loads(path.read_text())["status"] for path in ends]


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    """What the condition gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def workers(project: Project) -> list[int]:
    """Processes that belong to this project and are not zombies, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            env = (entry / "environ").read_bytes()
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if not zombie and f"ASSAY_CACHE={project.cache}".encode() in env.split(b"\0"):
            found.append(int(entry.name))
    return found


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
