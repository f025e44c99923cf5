"""What do the images look like?

Usage:

    python -m experiments.dataset_example

Saves and draws the first ten training images of every class: plot_dataset_example.npz and .png.
"""

import command

if __name__ == "__main__":
    command.start()


import sys

import data
import runs
from experiments import EXAMPLES, pictures
from experiments.common import make_parser, parse_arguments


def main(argv=None):
    parser = make_parser("Draw training images of every class.", runs.DEFAULT_OUT_DIR["cifar10"])
    arguments = parse_arguments(parser, argv)
    split = data.load_splits(arguments.dataset, arguments.data_dir, ["train"])["train"]
    runs.make_folder(arguments.folder)
    runs.write_arrays(
        arguments.folder / EXAMPLES,
        images=data.examples(split, per_class=10).numpy(),
        classes=data.CLASSES[arguments.dataset],
    )
    pictures.draw_examples(arguments.folder)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
