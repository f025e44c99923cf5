"""Does the exercise's learning rate suit dense as well as cnn2?

Usage:

    python -m experiments.learning_rates [VARIANT...] [--seeds N]

Trains both networks with the exercise's recipe for 20 epochs, at its learning rate of 1e-4 and at higher ones.
"""

import command

if __name__ == "__main__":
    command.start()


import sys

from experiments.common import Variant, compare_variants
from recipe import Recipe

VARIANTS = {
    f"{name}_{rate}": Variant(name, Recipe(learning_rate=float(rate)), None if rate == "1e-4" else f"{name}_1e-4")
    for name in ("dense", "cnn2")
    for rate in ("1e-4", "3e-4", "1e-3")
}


def main(argv=None):
    compare_variants(argv, "Train with several learning rates.", "outs/learning_rates", VARIANTS, epochs=20)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
