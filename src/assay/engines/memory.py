"""Memory of a process that allocates large tensors again and again."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
LARGE = 2**25
"""Bytes; the C library takes no higher threshold."""


def keep(*, but_large: bool = False) -> None:
    """Let the C library keep what is freed, instead of giving it back and asking for it again.

    By default glibc maps every large tensor anew, and the kernel zeroes its pages: on a virtual
    machine that can cost more than what is computed. Numbers do not change. Does nothing where the
    C library is another.

    Args:
        but_large: Tensors of 32 MiB and more are given back: slower by what their pages cost, and the
            process is no larger than what lives at once.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        if but_large:
            mallopt(_MMAP_THRESHOLD, LARGE)
        else:
            mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
