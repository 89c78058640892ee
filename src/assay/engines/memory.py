"""Memory of a process that allocates large tensors again and again."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep() -> None:
    """Let the C library keep what is freed, instead of giving it back and asking for it again.

    By default glibc maps every large tensor anew, and the kernel zeroes its pages: on a virtual
    machine that can cost more than what is computed. Numbers do not change; the process can be larger
    than what lives at once. Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
