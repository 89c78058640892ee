"""Libraries of C++ kernels: optional parts of the package's build, loaded with ctypes.

A library has no Python in it. It lies in its engine's folder, its sources in csrc/ beside it and in
csrc/ beside this file, and it knows the digest of the sources that it was built from.
"""

import ctypes
import hashlib
from pathlib import Path
from typing import Any

from assay.core.errors import ProvenanceError

_SHARED = Path(__file__).parent / "csrc"


def source_digest(folder: Path) -> str:
    """Identity of a library's C++ sources, as setup.py compiles it in; empty if they are not there.

    Args:
        folder: The engine's.
    """
    if not (folder / "csrc").is_dir():
        return ""
    files = [path for part in (_SHARED, folder / "csrc") for path in sorted(part.iterdir())]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def load(folder: Path) -> tuple[Any, str]:
    """The library, or None; and what it was compiled for, or why there is none.

    Args:
        folder: The engine's.

    Raises:
        ProvenanceError: The library was built from other sources than those beside it.
    """
    found = sorted(folder.glob("_fused*.so"))
    if not found:
        return None, "the C++ extension was not built: install again with a C++ compiler"
    library: Any = ctypes.CDLL(str(found[-1]))
    for name in ("assay_sources", "assay_vector_units"):
        getattr(library, name).restype = ctypes.c_char_p
    built_from, digest = library.assay_sources().decode(), source_digest(folder)
    if digest and built_from != digest:
        raise ProvenanceError(
            f"{found[-1].name} must be built from the sources beside it ({digest}); it was "
            f"built from {built_from}. A stale kernel would compute something else than the code "
            "says: run `make setup`."
        )
    units = library.assay_vector_units().decode()
    if not units:
        return None, "the C++ extension was built for a CPU with other vector units"
    return library, f"fused C++, {units}, sources {built_from}"


def pointer(tensor: Any, kind: Any) -> Any:
    """The address of a tensor's numbers, which ctypes then knows to be of a kind."""
    return ctypes.cast(tensor.data_ptr(), ctypes.POINTER(kind))
