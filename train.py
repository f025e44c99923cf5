"""Train a network and fill its run folder: checkpoints, history, metrics, tables and pictures.

Usage:

    python train.py --model cnn2                            the exercise: CIFAR-10, 80 epochs, AdamW, 1e-4, batch 32
    python train.py --model cnn2 --dataset digits --epochs 10       a first try, offline, in seconds
    python train.py --model cnn2 --resume                   resume a stopped run
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` omits it
    import command

    command.start()

import math
import time
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import command
import data
import evaluate
import models
import optimizers
import plots
import runs
from augmentation import derived_seed
from metrics import mean_loss_and_accuracy
from recipe import Recipe, add_options, given_settings, parse_shares

CHECK_EVERY = 50  # steps between checks that the loss is finite, each of which makes a GPU wait
ADVICE = "what was saved before is kept. Try again with a lower --learning-rate"


def train(run: runs.Run, device, data_dir, network=None, saved=None, observe=None):
    """Train a network to the end of its recipe, and update its run folder after each epoch.

    `network` is its class, if it isn't models.MODELS[run.model]. `saved` is the runs.Checkpoint to resume from.
    observe(model, epoch) is called after each epoch, before it is saved. Returns the history: a dict for every epoch,
    the rows of history.csv. Raises NotFinite, ModelError, DataError, OSError, and CheckpointError if `saved` doesn't
    fit.
    """
    recipe = run.recipe
    torch.manual_seed(recipe.seed)  # decides the initial weights
    model = models.build(network or run.model)
    splits = data.load_splits(run.dataset, data_dir, ("train", "validation"))
    model.fit_input(splits["train"].images)  # mean and standard deviation of the pixels
    model.to(device)
    splits = {name: split.to(device) for name, split in splits.items()}
    optimizer = optimizers.make_optimizer(model, recipe)
    history = []
    image_losses = torch.zeros(len(splits["train"].labels), device=device)  # which images are easy, for --skip-easy
    if saved:
        history, image_losses = resume(saved, model, optimizer, image_losses, run.folder / runs.LAST)
    forward = make_forward(model, device, run.environment)
    print_start(run, model, splits)
    picture_due = 0.0
    while not runs.has_ended(history, recipe):  # all epochs are done, or the target loss is reached
        epoch, start = len(history) + 1, time.perf_counter()
        trained = train_epoch(model, forward, optimizer, splits["train"], recipe, epoch, image_losses)
        images_per_second = trained.images / (time.perf_counter() - start)
        validation_loss, validation_accuracy = validate(model, splits["validation"], epoch)
        row = {
            "epoch": epoch,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "learning_rate": trained.learning_rate,
            "seconds": round(time.perf_counter() - start, 3),
        }
        history.append(row)
        if observe:
            observe(model, epoch)
        # last.pt, history.csv and, if this epoch is the best so far, best.pt
        runs.save_epoch(run, model.state_dict(), optimizer.state_dict(), history, image_losses)
        picture_due = plots.draw_loss_when_due(run.folder, picture_due)
        print_epoch(row, recipe.epochs, images_per_second, is_best=runs.best_epoch(history) == epoch)
    return history


class Epoch(NamedTuple):
    """The result of one training epoch: means over the images visited, measured while the weights were changing."""

    loss: float
    accuracy: float
    images: int
    learning_rate: float  # of the last step


def train_epoch(model, forward, optimizer, split, recipe: Recipe, epoch, image_losses) -> Epoch:
    """One pass over the training split, without the easy images that the recipe skips.

    `forward` is from make_forward. `image_losses`, float32 [N], is updated in place: the entry of each visited image
    becomes the mean of its loss in this epoch and the previous entry. Losses and hits stay on the device, so the CPU
    waits only every CHECK_EVERY steps, when a loss that isn't finite raises NotFinite, and at the end.
    """
    model.train()
    torch.manual_seed(derived_seed(recipe.seed, epoch, "dropout"))  # dropout masks depend on seed and epoch alone
    order = data.epoch_order(image_losses, recipe.skip_easy, recipe.seed, epoch)
    steps = math.ceil(len(order) / recipe.batch_size)
    corrupt = parse_shares(recipe.corrupt)
    batches = data.batches(split, order, recipe.batch_size, recipe.seed, epoch, recipe.augment, corrupt)
    losses = torch.zeros_like(image_losses)
    hits = torch.zeros((), dtype=torch.int64, device=order.device)
    for step, (indices, images, labels) in enumerate(tqdm(batches, f"epoch {epoch}", steps, leave=False, disable=None)):
        # As if every epoch had as many steps as this one: --skip-easy changes their number.
        learning_rate = optimizers.learning_rate_at((epoch - 1) * steps + step, recipe.epochs * steps, recipe)
        optimizers.set_learning_rate(optimizer, learning_rate)
        logits = train_step(forward, optimizer, images, labels, recipe.label_smoothing)
        losses[indices] = cross_entropy(logits, labels, reduction="none")  # without label smoothing, as in validation
        hits += (logits.argmax(dim=1) == labels).sum()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            check_finite(losses[order], recipe.batch_size, epoch)
    image_losses[order] = (image_losses[order] + losses[order]) / 2
    return Epoch(losses.double().sum().item() / len(order), hits.item() / len(order), len(order), learning_rate)


def train_step(forward, optimizer, images, labels, label_smoothing=0.0):
    """One update: uint8 images [N, 3, 32, 32] and int64 labels [N] -> the logits [N, 10] from before the update.

    Label smoothing: Szegedy et al. 2016, arXiv:1512.00567.
    """
    logits = forward(images)
    loss = cross_entropy(logits, labels, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return logits.detach()


def validate(model, split, epoch):
    """Mean loss and accuracy on a split, in eval mode and fp32. Raises NotFinite."""
    loss, accuracy = mean_loss_and_accuracy(evaluate.infer(model, split))
    if not math.isfinite(loss):
        raise NotFinite(f"the validation loss is {loss} after epoch {epoch}; {ADVICE}")
    return loss, accuracy


def make_forward(model, device, environment):
    """A function from uint8 images [N, 3, 32, 32] to float32 logits [N, 10], computed in the training precision."""
    compute_logits = command.compiled(model.logits) if environment["compile"] else model.logits

    def forward(images):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=environment["precision"] == "bf16"):
            return compute_logits(images).float()

    return forward


class NotFinite(command.UserError):
    """The loss is infinite or nan; the message says when."""

    exit_code = 1


def check_finite(losses, batch_size, epoch):
    """Raise NotFinite unless all losses, given in the order of the epoch, are finite."""
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        loss, step = losses[bad[0]].item(), bad[0].item() // batch_size + 1
        raise NotFinite(f"the training loss is {loss} at epoch {epoch}, step {step}; {ADVICE}")


def resume(saved: runs.Checkpoint, model, optimizer, image_losses, path):
    """Restore the state of a stopped run; returns its history and its image losses, on the device of those given."""
    if saved.image_losses.shape != image_losses.shape or saved.split_seed != data.SPLIT_SEED:
        raise runs.CheckpointError(f"{path} was trained on different images")
    models.load_weights(model, saved.weights, path)
    optimizers.load_optimizer(optimizer, saved.optimizer, path)
    return list(saved.history), saved.image_losses.to(image_losses)


def print_start(run, model, splits):
    environment = run.environment
    print(
        f"{run.model} on {run.dataset}: {models.count_parameters(model):,} parameters, "
        f"{len(splits['train'].labels):,} training and {len(splits['validation'].labels):,} validation images, "
        f"{environment['device']}, {environment['precision']}, {environment['threads']} threads; "
        f"the curve while it trains: {command.printable(run.folder / runs.LOSS_PLOT)}",
        flush=True,
    )


def print_epoch(row, epochs, images_per_second, is_best):
    minutes, seconds = divmod(round(row["seconds"] * (epochs - row["epoch"])), 60)
    print(
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
        f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}"
        f"  validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}"
        f"  {images_per_second:,.0f} images/s  {row['seconds']:.1f} s  left {minutes}:{seconds:02d}"
        f"{'  best' if is_best else ''}",
        flush=True,
    )


def main(argv=None):
    arguments = parse_arguments(argv)
    device = command.choose_device(arguments.device)
    out_dir = arguments.out_dir or runs.DEFAULT_OUT_DIR[arguments.dataset]
    folder = out_dir / (arguments.run_name or arguments.model)
    given, saved = given_settings(arguments), None
    if arguments.resume and not (folder / runs.LAST).exists():
        raise command.UsageError(f"nothing to resume: there is no {folder / runs.LAST}")
    with runs.claim_folder(folder):
        if arguments.resume:
            saved = runs.load_resumable(folder, arguments.model, arguments.dataset, given)
        elif runs.is_unfinished(folder) and not arguments.overwrite:
            raise command.UsageError(f"{folder} holds an unfinished run: use --resume, or --overwrite to replace it")
        environment = command.describe_environment(
            device, arguments.precision, arguments.compile, before=saved.environment if saved else None
        )
        recipe = saved.recipe if saved else Recipe(**given)
        run_id = saved.run_id if saved else runs.new_id()
        run = runs.Run(folder, arguments.model, arguments.dataset, recipe, environment, run_id)
        with command.printing_how_to_resume(lambda: runs.is_resumable(run)):
            train(run, device, arguments.data_dir, saved=saved)
            evaluate.evaluate_checkpoint(folder / runs.BEST, arguments.data_dir, device)


def parse_arguments(argv):
    parser = command.Parser(description="Train a network and evaluate its best epoch.", allow_abbrev=False)
    what = parser.add_argument_group("what to train")
    what.add_argument("--model", required=True, choices=models.MODELS, help="network to train")
    what.add_argument(
        "--dataset", choices=data.CLASSES, default="cifar10", help="digits needs no download (default: %(default)s)"
    )

    add_options(parser)

    run = parser.add_argument_group("run folder")
    default = ", ".join(f"{folder} for {dataset}" for dataset, folder in runs.DEFAULT_OUT_DIR.items())
    run.add_argument("--out-dir", type=Path, help=f"where run folders are created (default: {default})")
    run.add_argument("--run-name", type=command.plain_name, help="name of the run folder (default: the model's name)")
    again = run.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="resume the run in the folder, with its own settings")
    again.add_argument("--overwrite", action="store_true", help="replace an unfinished run in the folder")

    machine = parser.add_argument_group("data and machine")
    command.add_common_arguments(machine)
    machine.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="training precision; auto: bf16 where it is native, else fp32 (default: %(default)s)",
    )
    machine.add_argument("--compile", action="store_true", help="use torch.compile; slower on a CPU (default: off)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
