"""What it costs to apply softmax twice: cnn2 trained on `model(images)` in place of `model.logits(images)`.

Usage:

    python benchmarks/softmax_twice.py --data-dir FOLDER

PyTorch's cross_entropy applies a (log-)softmax itself. Given probabilities, it applies another one to numbers between 0
and 1, and even a perfect prediction keeps a loss of log(1 + 9 / e) = 1.46. All else is train.py's: recipe, seed, batches,
the epoch chosen by validation accuracy. Both losses in the history are those that the mistake shows; the metrics are
those of the network that comes of it, computed rightly.
"""

import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import command  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402
import models  # noqa: E402
import plots  # noqa: E402
import runs  # noqa: E402
import train  # noqa: E402


def main():
    parser = command.Parser(description="Train cnn2 with softmax applied twice.")
    parser.add_argument("--data-dir", type=Path, default=command.DEFAULT_DATA_DIR)
    parser.add_argument("--dataset", choices=data.CLASSES, default="cifar10")
    parser.add_argument("--epochs", type=command.number(int, 1, 10**6), default=train.RECIPE["epochs"])
    parser.add_argument("--folder", type=Path, default=ROOT / "outs" / "softmax_twice")
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    settings = train.RECIPE | {"epochs": arguments.epochs}
    device = command.choose_device("auto")
    precision = train.choose_precision("auto", device)
    splits = data.load_splits(arguments.dataset, arguments.data_dir)
    normalisation = data.channel_statistics(splits["train"].images)
    splits = {name: split.to(device) for name, split in splits.items()}
    torch.manual_seed(settings["seed"])
    model = models.build("cnn2", *normalisation).to(device)
    optimizer = train.make_optimizer(model, settings)
    autocast = train.make_autocast(device, precision)

    history, best_weights = [], None
    for epoch in range(1, settings["epochs"] + 1):
        start = time.perf_counter()
        # The mistake: `model` stands where train.py has `model.logits`.
        loss, accuracy = train.train_epoch(model, model, optimizer, splits["train"], settings, epoch, autocast)
        log_probabilities, labels = evaluate.infer(model, splits["validation"])
        validation = evaluate.mean_loss_and_accuracy(log_probabilities.exp().log_softmax(dim=1), labels)
        history.append(
            {
                "epoch": epoch,
                "train_loss": loss,
                "train_accuracy": accuracy,
                "validation_loss": validation[0],
                "validation_accuracy": validation[1],
                "learning_rate": settings["learning_rate"],
                "seconds": round(time.perf_counter() - start, 3),
            }
        )
        print(history[-1], flush=True)
        if train.best_epoch(history) == epoch:
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}

    model.load_state_dict(best_weights)
    metrics = {
        "model": "cnn2",
        "best_epoch": train.best_epoch(history),
        "settings": settings,
        "torch_version": str(torch.__version__),
        "device": train.describe(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
    }
    for name, split in splits.items():
        log_probabilities, labels = evaluate.infer(model, split)
        metrics[name] = evaluate.split_metrics(log_probabilities, labels, data.CLASSES[arguments.dataset])
    probabilities = log_probabilities.exp().numpy()
    runs.write_arrays(arguments.folder / runs.PREDICTIONS, labels=labels.numpy(), probabilities=probabilities)
    runs.write_atomically(arguments.folder / runs.HISTORY, runs.csv_bytes(history))
    runs.write_atomically(arguments.folder / runs.METRICS, (json.dumps(metrics, indent=1) + "\n").encode())
    plots.draw_loss(arguments.folder, metrics)
    print(evaluate.format_metrics(metrics["test"]))


if __name__ == "__main__":
    sys.exit(command.run_command(main))
