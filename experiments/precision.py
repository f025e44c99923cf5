"""Does training in bf16 cost accuracy?

Usage:

    python -m experiments.precision [VARIANT...] [--seeds N]

Trains cnn2 with the exercise's recipe for 20 epochs, in bf16 and in fp32.
"""

import command

if __name__ == "__main__":
    command.start()


import sys

from experiments.common import Variant, compare_variants
from recipe import Recipe

VARIANTS = {
    "fp32": Variant("cnn2", Recipe(), precision="fp32"),
    "bf16": Variant("cnn2", Recipe(), "fp32", precision="bf16"),
}


def main(argv=None):
    compare_variants(argv, "Train cnn2 in bf16 and in fp32.", "outs/precision", VARIANTS, epochs=20)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
