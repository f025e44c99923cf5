"""Which of the differences between cnn2 and vgg make vgg better?

Usage:

    python -m experiments.vgg_apart [VARIANT...] [--seeds N]

Goes from cnn2 to vgg in steps, each of which adds one thing, all with the exercise's recipe for 20 epochs.
"""

import command

if __name__ == "__main__":
    command.start()


import sys

from torch import nn

import models
from experiments.common import Variant, compare_variants
from recipe import Recipe


class Step(models.Network):
    """vgg without some parts: `blocks` of `convolutions` each, with or without batch normalisation and dropout."""

    blocks, convolutions, batch_norm, dropout = (64, 128, 256), 2, True, 0.5

    def __init__(self):
        super().__init__()
        layers, channels, side = [], 3, 32
        for width in self.blocks:
            for _ in range(self.convolutions):
                layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not self.batch_norm))
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if self.batch_norm else [nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
            side //= 2
        layers += [models.Flatten(), nn.Linear(channels * side * side, 256), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Dropout(self.dropout), nn.Linear(256, 10))


class Wider(Step):
    """cnn2 with as many filters and units as vgg."""

    blocks, convolutions, batch_norm, dropout = (64, 128), 1, False, 0.0


class ThirdBlock(Step):
    convolutions, batch_norm, dropout = 1, False, 0.0


class TwoConvolutions(Step):
    batch_norm, dropout = False, 0.0


class Normalised(Step):
    dropout = 0.0


VARIANTS = {
    "cnn2": Variant("cnn2", Recipe()),
    "wider": Variant("vgg", Recipe(), "cnn2", Wider),
    "third_block": Variant("vgg", Recipe(), "wider", ThirdBlock),
    "two_convolutions": Variant("vgg", Recipe(), "third_block", TwoConvolutions),
    "batch_normalisation": Variant("vgg", Recipe(), "two_convolutions", Normalised),
    "dropout": Variant("vgg", Recipe(), "batch_normalisation"),
}


def main(argv=None):
    compare_variants(argv, "Train the steps from cnn2 to vgg.", "outs/vgg_apart", VARIANTS, epochs=20)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
