"""Train one network and leave a finished run folder: checkpoints, history, metrics, tables and pictures.

Usage:

    python train.py --model cnn2                            the exercise: CIFAR-10, 80 epochs, AdamW, 1e-4, batch 32
    python train.py --model cnn2 --dataset digits --epochs 10       a first try, offline, in seconds
    python train.py --model cnn2 --resume                   go on where a stopped run was
"""

import command

import dataclasses
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import data
import evaluate
import models
import optimizers
import runs
from metrics import mean_loss_and_accuracy
from recipe import WARM_UP, Recipe, add_options, given_settings

CHECK_EVERY = 50  # steps between two looks at whether the loss is still finite: each makes a GPU wait
ADVICE = "what was saved before is kept. Start again with a lower --learning-rate"


class NotFinite(command.UserError):
    """The loss is infinite or not a number; the message says where."""

    exit_code = 1


def main(argv=None):
    arguments = parse_arguments(argv)
    device = command.choose_device(arguments.device)
    out_dir = arguments.out_dir or runs.DEFAULT_OUT_DIR[arguments.dataset]
    folder = out_dir / (arguments.run_name or arguments.model)
    last = folder / runs.LAST
    given = given_settings(arguments)
    if arguments.resume and not last.exists():
        raise command.UsageError(f"nothing to resume: there is no {last}")
    with runs.claim_folder(folder):
        former = last.exists() and last.stat().st_mtime_ns
        saved = None
        if arguments.resume:
            saved = load_run(folder, arguments.model, arguments.dataset, given)
        elif last.exists() and not arguments.overwrite and not is_finished(folder):
            raise command.UsageError(f"{folder} holds an unfinished run: use --resume, or --overwrite to replace it")
        recipe = Recipe(**(saved["settings"] if saved else {}) | given)
        try:
            if saved and has_ended(saved["history"], recipe):
                end = "All epochs are trained" if saved["epoch"] >= recipe.epochs else "The target loss is reached"
                print(f"{end}: writing the tables and pictures again.")
                # Its settings may be new ones, which end it sooner.
                runs.save_checkpoint(last, saved | {"settings": dataclasses.asdict(recipe)})
            else:
                model, splits = prepare(arguments.model, arguments.dataset, arguments.data_dir, recipe, device)
                before = saved["environment"] if saved else None
                environment = command.describe_environment(device, arguments.precision, arguments.compile, before)
                about = {"model": arguments.model, "dataset": arguments.dataset, "environment": environment}
                train(model, splits, recipe, folder, about, saved)
            evaluate.evaluate_checkpoint(folder / runs.BEST, arguments.data_dir, device)
        except (KeyboardInterrupt, BrokenPipeError):
            resumable = last.exists() and (saved or last.stat().st_mtime_ns != former)
            hint = resume_command() if resumable else "No epoch is complete yet: start again with the same command."
            print(f"\nStopped. {hint}", file=sys.stderr)
            raise


def prepare(network, dataset, data_dir, recipe, device):
    """A new network, by name or class, and the training and validation split, all on the device: (Network, dict)."""
    splits = data.load_splits(dataset, data_dir, ("train", "validation"))
    torch.manual_seed(recipe.seed)
    model = models.build(network)
    model.adapt(splits["train"].images)
    model.to(device)
    return model, {name: split.to(device) for name, split in splits.items()}


def train(model, splits, recipe: Recipe, folder, about, saved=None, observe=None):
    """Train a network until its recipe's end; after each epoch the run folder is up to date.

    `about` is what the checkpoints say besides: "model", "dataset" and "environment" (command.describe_environment).
    `saved` is the checkpoint to go on from; observe(model, epoch) is called after each epoch, before it is saved.
    Returns the history: a dict for every epoch, the rows of history.csv. Raises NotFinite, OSError, and CheckpointError
    where `saved` doesn't fit.
    """
    environment = about["environment"]
    device = splits["train"].labels.device
    optimizer = optimizers.make_optimizer(model, recipe)
    history = []
    image_losses = torch.zeros(len(splits["train"].labels), device=device)
    if saved:
        models.load_weights(model, saved["weights"], folder / runs.LAST)
        optimizers.load_optimizer(optimizer, saved["optimizer"], folder / runs.LAST)
        history = list(saved["history"])
        if saved["image_losses"].shape != image_losses.shape or saved["split_seed"] != data.SPLIT_SEED:
            raise runs.CheckpointError(f"{folder / runs.LAST} was trained on other images")
        image_losses = saved["image_losses"].to(device)
    forward = torch.compile(model.logits) if environment["compile"] else model.logits
    autocast = make_autocast(device, environment["precision"])
    print(
        f"{about['model']} on {about['dataset']}: {models.count_parameters(model):,} parameters, "
        f"{len(splits['train'].labels):,} training and {len(splits['validation'].labels):,} validation images, "
        f"{environment['device']}, {environment['precision']}, {environment['threads']} threads",
        flush=True,
    )
    while not has_ended(history, recipe):
        epoch, start = len(history) + 1, time.perf_counter()
        train_loss, train_accuracy, images = train_epoch(
            model, forward, optimizer, splits["train"], recipe, epoch, autocast, image_losses
        )
        images_per_second = images / (time.perf_counter() - start)
        validation_loss, validation_accuracy = mean_loss_and_accuracy(evaluate.infer(model, splits["validation"]))
        if not math.isfinite(validation_loss):
            raise NotFinite(f"the validation loss is {validation_loss} after epoch {epoch}; {ADVICE}")
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "learning_rate": optimizer.param_groups[0]["lr"] / optimizer.param_groups[0]["factor"],
            "seconds": round(time.perf_counter() - start, 3),
        }
        history.append(row)
        if observe:
            observe(model, epoch)
        progress = {"optimizer": optimizer.state_dict(), "history": history, "image_losses": image_losses.cpu()}
        save_epoch(folder, model, progress, recipe, about)
        report(row, recipe.epochs, images_per_second, is_best=best_epoch(history) == epoch)
    return history


def train_epoch(model, forward, optimizer, split, recipe: Recipe, epoch, autocast, image_losses):
    """One pass over the training split; mean loss and accuracy over the samples, while the weights moved, and how many
    these are.

    `forward` gives the logits (`model.logits`, or compiled). Loss and hits are summed on the device: the host waits for
    them only every CHECK_EVERY steps, when a loss that is no longer finite raises NotFinite, and at the end.
    `image_losses`, float32 [N], says which images are easy: the mean of an image's loss at its last visit and of what
    stood there before. It is brought up to date where the recipe asks for that.
    """
    model.train()
    torch.manual_seed(data.derived_seed(recipe.seed, epoch, 2))  # dropout's masks: of this epoch alone
    order = data.epoch_order(len(split.labels), recipe.seed, epoch, easy_images(image_losses, recipe, epoch))
    order = order.to(split.labels.device)
    steps = math.ceil(len(order) / recipe.batch_size)
    losses = torch.zeros(steps, device=split.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    batches = data.batches(split, order, recipe.batch_size, recipe.seed, epoch, recipe.augment)
    for step, (images, labels) in enumerate(tqdm(batches, f"epoch {epoch}", steps, leave=False, disable=None)):
        rate = optimizers.learning_rate_at((epoch - 1) * steps + step, recipe.epochs * steps, recipe)
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * rate
        loss, logits = train_step(forward, optimizer, images, labels, autocast, recipe.label_smoothing)
        losses[step] = loss * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum()
        if recipe.skip_easy:
            batch = order[step * recipe.batch_size :][: len(labels)]
            now = cross_entropy(logits.float(), labels, reduction="none")
            image_losses[batch] = (image_losses[batch] + now) / 2
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            check_finite(losses[: step + 1], epoch)
    return losses.cpu().double().sum().item() / len(order), correct.item() / len(order), len(order)


def easy_images(image_losses, recipe: Recipe, epoch):
    """The share of the training images that had the lowest losses of late, bool [N] on the CPU; None where the epoch
    visits them all. (Which images these are, others ask a smaller network: Jordan's airbench96_faster.)"""
    if not recipe.skip_easy or epoch <= WARM_UP:
        return None
    easy = torch.zeros(len(image_losses), dtype=torch.bool)
    easy[image_losses.cpu().argsort(stable=True)[: round(recipe.skip_easy * len(easy))]] = True
    return easy


def train_step(forward, optimizer, images, labels, autocast, label_smoothing=0.0):
    """Forward, backward, an update on one batch: uint8 images [N, 3, 32, 32], int64 labels [N].

    Returns the mean cross-entropy, float32, and the logits [N, 10], in the precision of `autocast`, both on the device.
    Label smoothing (Szegedy et al. 2016, arXiv:1512.00567) changes what is minimised, not the cross-entropy returned.
    """
    with autocast:
        logits = forward(images)
    loss = cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    logits = logits.detach()
    if label_smoothing:
        loss = cross_entropy(logits.float(), labels)  # comparable with the validation loss
    return loss.detach(), logits


def check_finite(losses, epoch):
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        loss, step = losses[bad[0]].item(), bad[0].item() + 1
        raise NotFinite(f"the training loss is {loss} at epoch {epoch}, step {step}; {ADVICE}")


def make_autocast(device, precision):
    """The context of a forward pass: bfloat16 where it pays, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


# The run: what it has done, when it ends, how it goes on.


def best_epoch(history):
    """The epoch of the highest validation accuracy, of equal ones that of the lowest validation loss."""
    return max(history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))["epoch"]


def has_ended(history, recipe: Recipe):
    if not history:
        return False
    reached = recipe.target_loss is not None and history[-1]["validation_loss"] <= recipe.target_loss
    return reached or history[-1]["epoch"] >= recipe.epochs


def is_finished(folder):
    """Whether the run that wrote last.pt came to its end, metrics included."""
    try:
        saved = runs.load_checkpoint(folder / runs.LAST)
    except runs.CheckpointError:
        return False
    return has_ended(saved.get("history"), Recipe(**saved["settings"])) and (folder / runs.METRICS).exists()


def load_run(folder, name, dataset, given):
    """The checkpoint to go on from, last.pt, if it is one of network `name` on the data set whose recipe can become the
    `given` one (fields of Recipe in a dict); raises UsageError, CheckpointError or OSError where it isn't."""
    last = folder / runs.LAST
    saved = runs.load_checkpoint(last)
    if not runs.RESUME_FIELDS.keys() <= saved.keys():
        raise runs.CheckpointError(f"{last} can't be resumed from: it holds no optimiser state")
    for field, expected in (("model", name), ("dataset", dataset)):
        if saved[field] != expected:
            raise command.UsageError(f"{last} is of --{field} {saved[field]}, not {expected}")
    before = saved["settings"]
    # What decides when the run ends may change, unless the learning rate depends on it; what an epoch does may not.
    may_change = {"target_loss"} if before["schedule"] == "linear" else {"target_loss", "epochs"}
    for field, now in given.items():
        if now != before[field] and field not in may_change:
            raise command.UsageError(
                f"{last} is of a run with {field} {before[field]}, not {now}: leave that option out"
            )
    if given.get("epochs", saved["epoch"]) < saved["epoch"]:
        raise command.UsageError(f"{folder} has been trained for {saved['epoch']} epochs: --epochs can't be less")
    restore(folder, saved)
    return saved


def restore(folder, saved):
    """Bring best.pt and history.csv to where last.pt is: a kill can have left them an epoch behind. Raises UsageError
    where best.pt is of another run; CheckpointError or OSError where it can't be read."""
    kept = best_epoch(saved["history"])
    if kept == saved["epoch"]:
        best = {name: value for name, value in saved.items() if name not in runs.RESUME_FIELDS}
        runs.save_checkpoint(folder / runs.BEST, best)
    else:
        best = runs.load_checkpoint(folder / runs.BEST)
        seconds = sum(row["seconds"] for row in saved["history"][:kept])
        if best["epoch"] != kept or not math.isclose(best["seconds"], seconds):
            raise command.UsageError(f"{folder / runs.BEST} is not of the run in {folder / runs.LAST}: use --overwrite")
    runs.write_atomically(folder / runs.HISTORY, runs.csv_bytes(saved["history"]))


def save_epoch(folder, model, progress, recipe: Recipe, about):
    """Bring a run folder up to date, in an order that leaves it resumable whenever the program dies.

    `progress` has the entries of runs.RESUME_FIELDS.
    """
    history = progress["history"]
    checkpoint = {
        "format_version": runs.FORMAT_VERSION,
        **about,
        "classes": data.CLASSES[about["dataset"]],
        "epoch": len(history),
        "settings": dataclasses.asdict(recipe),
        "split_seed": data.SPLIT_SEED,
        "seconds": float(sum(row["seconds"] for row in history)),
        "weights": model.state_dict(),
    }
    if len(history) == 1:
        runs.remove_former_run(folder)
    (folder / runs.METRICS).unlink(missing_ok=True)  # from here on the run in the folder isn't finished
    # last.pt first: from it the other two can be made again, if the program dies before they are written.
    runs.save_checkpoint(folder / runs.LAST, checkpoint | progress)
    runs.write_atomically(folder / runs.HISTORY, runs.csv_bytes(history))
    if best_epoch(history) == len(history):
        runs.save_checkpoint(folder / runs.BEST, checkpoint)


def report(row, epochs, images_per_second, is_best):
    left = divmod(round(row["seconds"] * (epochs - row["epoch"])), 60)
    print(
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
        f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}"
        f"  validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}"
        f"  {images_per_second:,.0f} images/s  {row['seconds']:.1f} s  left {left[0]}:{left[1]:02d}"
        f"{'  best' if is_best else ''}",
        flush=True,
    )


def resume_command():
    options = [option for option in sys.argv[1:] if option not in ("--resume", "--overwrite")]
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return "Go on with:\n  " + join(["python", sys.argv[0], *options, "--resume"])


def parse_arguments(argv):
    parser = command.Parser(description="Train a network and evaluate its best epoch.", allow_abbrev=False)
    what = parser.add_argument_group("what to train")
    what.add_argument("--model", required=True, choices=models.MODELS, help="the network")
    what.add_argument(
        "--dataset", choices=data.CLASSES, default="cifar10", help="digits needs no download (default: %(default)s)"
    )

    add_options(parser)

    run = parser.add_argument_group("run folder")
    default = ", ".join(f"{folder} for {dataset}" for dataset, folder in runs.DEFAULT_OUT_DIR.items())
    run.add_argument("--out-dir", type=Path, help=f"(default: {default})")
    run.add_argument("--run-name", type=command.plain_name, help="folder inside it (default: the model's name)")
    again = run.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run in the folder, with its settings")
    again.add_argument("--overwrite", action="store_true", help="replace an unfinished run in the folder")

    machine = parser.add_argument_group("data and machine")
    command.add_common_arguments(machine)
    machine.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="of the training step; auto: bf16 where the hardware computes in it, else fp32 (default: %(default)s)",
    )
    machine.add_argument("--compile", action="store_true", help="use torch.compile; slower on a CPU (default: off)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
