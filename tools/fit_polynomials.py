"""The polynomials of csrc/simd.h: least squares, reweighted towards equal errors (Lawson 1961).

    python tools/fit_polynomials.py

Prints the coefficients, lowest power first, and the largest error in exact and in float32 arithmetic.
"""

from collections.abc import Callable

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

Array = NDArray[np.float64]
ROUNDS, NODES = 80, 4000


def fit(
    name: str, function: Callable[[Array], Array], weight: Callable[[Array], Array], degree: int
) -> None:
    """Fit a function of t in [-1, 1] so that weight times error is small everywhere."""
    t = np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)
    target, scale = function(t), weight(t)
    basis = chebyshev.chebvander(t, degree)
    stress = scale.copy()
    for _ in range(ROUNDS):
        series = np.linalg.lstsq(basis * stress[:, None], target * stress, rcond=None)[0]
        error = np.abs(basis @ series - target) * scale
        stress *= np.sqrt(error / error.max() + 1e-3)
        stress /= stress.max()
    powers = chebyshev.cheb2poly(series)
    grid = np.linspace(-1, 1, 20_001)
    made = np.full_like(grid, powers[-1], dtype=np.float32)
    for power in powers[-2::-1]:
        made = made * grid.astype(np.float32) + np.float32(power)
    in_float = np.max(np.abs(made - function(grid)) * weight(grid))
    print(f"{name}, degree {degree}: {error.max():.2g} exact, {in_float:.2g} in float32")
    print("   ", ", ".join(f"{power:.9g}" for power in powers))


def main() -> None:
    """Print the polynomials."""
    # 2^r for r in [-1/2, 1/2]: divide coefficient k by 2^-k to have it in r instead of t = 2 r.
    fit("2^(t/2)", lambda t: np.exp2(t / 2), lambda t: np.exp2(-t / 2), 6)

    def ascent(t: Array) -> Array:  # (2^f - 1) / f, so that 2^0 is exactly 1
        f = (t + 1) / 2
        return np.asarray(np.expm1(f * np.log(2)) / np.maximum(f, 1e-300))

    # 2^f = 1 + f g(2 f - 1) for f in [0, 1]: multiply it out to have it in f.
    fit(
        "(2^f - 1) / f, t = 2f - 1", ascent, lambda t: (t + 1) / 2 * np.exp2(-(t + 1) / 2) + 1e-9, 4
    )


if __name__ == "__main__":
    main()
