"""The optional C++ extensions; everything else is in pyproject.toml.

Without a compiler the package is installed all the same, and the engines compute with PyTorch
operations (and say so). The libraries have no Python in them: they are loaded with ctypes.
"""

import hashlib
import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ENGINES = Path("src/assay/engines")


def vector_units() -> list[str]:
    """Compiler options for this machine's vector units, rounded down to a level that has a name.

    Not `-march=native`: whether a CPU has a named level can be asked before the library is used,
    and the library is refused on one that has not.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    compiler = shlex.split(sysconfig.get_config_var("CXX") or "g++")[0]
    ask = [compiler, "-march=native", "-dM", "-E", "-x", "c++", "/dev/null"]
    try:
        found = set(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split())
    except (OSError, subprocess.CalledProcessError):
        return []
    if {f"__AVX512{unit}__" for unit in ("F", "BW", "CD", "DQ", "VL")} <= found:
        return ["-march=x86-64-v4", "-mtune=native"]
    if {"__AVX2__", "__FMA__", "__BMI2__"} <= found:
        return ["-march=x86-64-v3", "-mtune=native"]
    return []


def kernel(engine: str, *sources: str) -> Extension:
    """The library of an engine: its csrc/, and the csrc/ that all engines share."""
    shared, own = ENGINES / "csrc", ENGINES / engine / "csrc"
    files = [path for folder in (shared, own) for path in sorted(folder.iterdir())]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    return Extension(
        f"assay.engines.{engine}._fused",
        sources=[str(own / source) for source in sources],
        depends=[str(path) for path in files],
        include_dirs=[str(shared)],
        define_macros=[("SOURCES", f'"{digest}"')],
        extra_compile_args=[
            "-std=c++17",
            "-O3",
            *vector_units(),
            "-ffp-contract=fast",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-Wno-psabi",
            "-Wno-maybe-uninitialized",  # in the compiler's own intrinsics
            "-Wno-uninitialized",
            "-g0",
        ],
        extra_link_args=["-pthread"],
        language="c++",
        optional=True,
    )


setup(
    ext_modules=[
        kernel("addition", "fused.cpp", "fused_double.cpp"),
        kernel("swarm", "fused.cpp"),
    ]
)
