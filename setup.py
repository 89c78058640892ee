"""The optional C++ extension; everything else is in pyproject.toml.

Without a compiler the package is installed all the same, and the addition engine computes with
PyTorch operations (and says so). The library has no Python in it: it is loaded with ctypes.
"""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("src/assay/engines/addition/csrc")

files = sorted(SOURCES.iterdir(), key=lambda path: path.name)
digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
kernel = Extension(
    "assay.engines.addition._fused",
    sources=[str(SOURCES / "fused.cpp"), str(SOURCES / "fused_double.cpp")],
    depends=[str(path) for path in files],
    define_macros=[("SOURCES", f'"{digest}"')],
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-march=native",  # refused at load on a machine without these vector units
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-Wno-psabi",
        "-Wno-maybe-uninitialized",  # in the compiler's own intrinsics
        "-g0",
    ],
    extra_link_args=["-pthread"],
    language="c++",
    optional=True,
)
setup(ext_modules=[kernel])
