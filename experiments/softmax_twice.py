"""What does it cost to apply softmax twice?

Usage:

    python -m experiments.softmax_twice

PyTorch's cross_entropy applies log-softmax itself. Given probabilities, it applies softmax again, to numbers between 0
and 1, and even a perfect prediction has a loss of log(1 + 9 / e) = 1.46. Everything else is as in train.py: recipe,
seed, batches, the epoch chosen by validation accuracy. Both losses in history.csv are computed with the mistake. The
trained network is evaluated without it, as a plain cnn2: true_loss.csv has the validation loss after each epoch, and
metrics.json all metrics.
"""

import command

if __name__ == "__main__":
    command.start()


import sys

import data
import evaluate
import models
import runs
from experiments import TRUE_LOSS
from experiments.common import evaluate_run, make_parser, parse_arguments, train_or_resume
from metrics import mean_loss_and_accuracy
from recipe import LIMITS, Recipe


class SoftmaxTwice(models.CNN2):
    """CNN2 with the mistake: its logits are already probabilities."""

    def logits(self, images):
        return super().logits(images).float().softmax(dim=1)


def main(argv=None):
    parser = make_parser("Train cnn2 with softmax applied twice.", "outs/softmax_twice")
    parser.add_argument("--epochs", type=command.number(*LIMITS["epochs"]), default=Recipe.epochs)
    arguments = parse_arguments(parser, argv)
    validation = data.load_splits(arguments.dataset, arguments.data_dir, ["validation"])["validation"]

    def write_true_loss(model, epoch):
        network = models.build("cnn2")
        network.load_state_dict(model.state_dict())
        loss, _ = mean_loss_and_accuracy(evaluate.infer(network, validation))
        path = arguments.folder / TRUE_LOSS
        earlier = runs.read_rows(path) if epoch > 1 else []
        rows = [row for row in earlier if int(row["epoch"]) < epoch] + [{"epoch": epoch, "validation_loss": loss}]
        runs.write_atomically(path, runs.csv_bytes(rows))

    recipe = Recipe(epochs=arguments.epochs)
    with runs.claim_folder(arguments.folder):
        train_or_resume(arguments.folder, "cnn2", recipe, arguments, SoftmaxTwice, observe=write_true_loss)
        evaluate_run(arguments.folder, arguments)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
