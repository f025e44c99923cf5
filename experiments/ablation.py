"""What does each part of the improved recipe and its network contribute?

Usage:

    python -m experiments.ablation [VARIANT...] [--seeds N] [--epochs N]

Each variant leaves out one part and keeps the others; `all_parts` keeps all. To save time, training is shorter than the
recipe's 28 epochs; regularisation (augmentation, label smoothing) may contribute less then. Without the schedule, and
without Muon, another learning rate is needed: the last variants, with seed 0 only, are the learning rates that were
tried and found worse.
"""

import command

if __name__ == "__main__":
    command.start()


import dataclasses
import sys

from torch import nn

import models
import train
from experiments.common import Variant, compare_variants
from recipe import Recipe, given_settings

# The options of train.py for outs/exercise_04/vgg_improved.
COMMAND = (
    "--model vgg_fast --run-name vgg_improved --epochs 28 --batch-size 1024 --optimizer muon --learning-rate 0.17 "
    "--schedule linear --label-smoothing 0.2 --augment --skip-easy 0.6"
)


class WithoutWhitening(models.FastVGG):
    """FastVGG whose first layer is initialised at random and trained like the others."""

    def __init__(self):
        super().__init__()
        self.layers[0].weight.requires_grad_(True)

    def fit_input(self, images):
        models.Network.fit_input(self, images)


class WithoutIdentities(models.FastVGG):
    """FastVGG whose convolutions, except for the first, have PyTorch's random initialisation."""

    def __init__(self):
        super().__init__()
        for layer in list(self.layers)[1:]:
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()


IMPROVED = Recipe(**given_settings(train.parse_arguments(COMMAND.split())))
VARIANTS = {"all_parts": Variant("vgg_fast", IMPROVED)} | {
    name: Variant(network, dataclasses.replace(IMPROVED, **changes), "all_parts", variant)
    for name, network, changes, variant in (
        ("vgg_by_this_recipe", "vgg", {}, None),
        ("without_whitening", "vgg_fast", {}, WithoutWhitening),
        ("without_identity_initialisation", "vgg_fast", {}, WithoutIdentities),
        ("without_augmentation", "vgg_fast", {"augment": False}, None),
        ("without_label_smoothing", "vgg_fast", {"label_smoothing": 0.0}, None),
        ("without_skipping_easy_images", "vgg_fast", {"skip_easy": 0.0}, None),
        ("constant_learning_rate", "vgg_fast", {"schedule": "constant", "learning_rate": 0.06}, None),
        ("adamw_instead_of_muon", "vgg_fast", {"optimizer": "adamw", "learning_rate": 1e-3}, None),
    )
}
VARIANTS |= {
    f"{name}_{rate}": Variant("vgg_fast", dataclasses.replace(VARIANTS[name].recipe, learning_rate=float(rate)))
    for name, rates in (
        ("constant_learning_rate", ("0.015", "0.03", "0.12")),
        ("adamw_instead_of_muon", ("5e-4", "2e-3", "5e-3")),
    )
    for rate in rates
}


def main(argv=None):
    compare_variants(argv, "Train the improved recipe without one of its parts.", "outs/ablation", VARIANTS, epochs=6)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
