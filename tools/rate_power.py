"""How often a study with n seeds an arm tells two true rates apart, by the lab's own interval.

    python tools/rate_power.py 0.47 0.70 --seeds 8 64 71

Exact: all outcomes of two binomial counts, weighted by their probability. Arms are taken as
independent; where seeds are shared and agree, the paired interval decides more often.
"""

import argparse

from scipy.stats import binom

from assay.core.statistics import newcombe_difference


def power(rate_a: float, rate_b: float, seeds: int, confidence: float = 0.95) -> float:
    """Probability that the interval of b - a lies above 0."""
    return float(
        sum(
            binom.pmf(a, seeds, rate_a) * binom.pmf(b, seeds, rate_b)
            for a in range(seeds + 1)
            for b in range(a + 1, seeds + 1)
            if newcombe_difference(b, seeds, a, seeds, confidence).low > 0
        )
    )


def main() -> None:
    """Print the power for every number of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rates", type=float, nargs=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=[8, 64, 71])
    arguments = parser.parse_args()
    low, high = sorted(arguments.rates)
    for seeds in arguments.seeds:
        print(f"{low} against {high}, {seeds} seeds an arm: power {power(low, high, seeds):.2f}")


if __name__ == "__main__":
    main()
