"""How often the drift tests see a change of the class mix, and how often they see one that is none.

    uv run python benchmarks/drift_power.py

Of one client with ten classes: windows of so many labels, drawn from a mix that is drawn from
Dirichlet(1), and for the recent window from the same mix, or from one of which half is replaced by
another draw. Prints the table of `docs/evolving-data.md` and writes the same figures as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.drift import LEVEL, DriftTest, Method, drift_test
from ahfal_app.results.environment import describe_environment
from ahfal_app.seeds import numpy_generator

CLASSES = 10
SIZES = (10, 20, 50, 100)

#: Pairs of windows with the same mix and with a changed one; relabelling takes longer.
PAIRS: dict[Method, tuple[int, int]] = {"chi-square": (2000, 1000), "permutation": (600, 300)}


def main() -> None:
    """Run the simulation from the command line."""
    arguments = _arguments()
    found = {
        method: {
            str(size): {
                "same mix": shares(method, size, False, pairs[0], arguments.seed),
                "half another": shares(method, size, True, pairs[1], arguments.seed),
            }
            for size in SIZES
        }
        for method, pairs in PAIRS.items()
    }
    result = {
        "benchmark": "drift_power",
        "environment": describe_environment(
            class_names=[], data_fingerprint="synthetic", partition_fingerprint=None
        ),
        "settings": {"classes": CLASSES, "level": LEVEL, "seed": arguments.seed, "pairs": PAIRS},
        "found": found,
    }
    arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for method, by_size in found.items():
        for mix in ("same mix", "half another"):
            cells = (f"{s[mix]['tested']:.0%}, {s[mix]['seen']:.1%}" for s in by_size.values())
            print(f"| {method}, {mix}: tested, of these p below {LEVEL:g} |", " | ".join(cells))


def shares(method: Method, size: int, is_changed: bool, pairs: int, seed: int) -> dict[str, float]:
    """Return the share of pairs of windows that can be tested, and of these with a small p."""
    generator = numpy_generator(seed, f"drift-power.{method}.{is_changed}", size)
    tests = [_test(method, size, is_changed, generator) for _ in range(pairs)]
    tested = [test for test in tests if isinstance(test, DriftTest)]
    seen = sum(test.p < LEVEL for test in tested)
    return {"tested": len(tested) / pairs, "seen": seen / len(tested) if tested else float("nan")}


def _test(
    method: Method, size: int, is_changed: bool, generator: np.random.Generator
) -> DriftTest | object:
    before_C: NDArray[np.float64] = generator.dirichlet(np.ones(CLASSES))
    after_C = before_C
    if is_changed:
        after_C = (before_C + generator.dirichlet(np.ones(CLASSES))) / 2
    windows = (generator.multinomial(size, mix_C) for mix_C in (before_C, after_C))
    return drift_test(*windows, method, lambda: generator)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    default = Path(__file__).parent / "results" / "drift_power.json"
    parser.add_argument("--output", type=Path, default=default)
    return parser.parse_args()


if __name__ == "__main__":
    main()
