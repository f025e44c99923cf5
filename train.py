"""Train one network and leave a finished run folder: checkpoints, history, metrics, tables and pictures.

Usage:

    python train.py --model cnn2                            the exercise: CIFAR-10, 80 epochs, AdamW, 1e-4, batch 32
    python train.py --model cnn2 --dataset digits --epochs 10       a first try, offline, in seconds
    python train.py --model cnn2 --resume                   go on where a stopped run was
"""

import math
import platform
import shlex
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import command
import data
import evaluate
import models
import plots
import runs

# The exercise's recipe; options of the same names change it, and a run folder's checkpoints remember it.
RECIPE = {
    "epochs": 80,
    "learning_rate": 1e-4,
    "batch_size": 32,
    "weight_decay": 0.01,
    "target_loss": None,
    "augment": False,
    "cutout": 0,
    "label_smoothing": 0.0,
    "schedule": "constant",
    "seed": 0,
}
WARM_UP = 0.05  # the share of all steps in which the cosine schedule rises
CHECK_EVERY = 50  # steps between two looks at whether the loss is still finite: each makes a GPU wait


class NotFinite(Exception):
    """The loss is infinite or not a number; the message says where."""


def main(argv=None):
    arguments = parse_arguments(argv)
    device = command.choose_device(arguments.device)
    out_dir = arguments.out_dir or runs.DEFAULT_OUT_DIR[arguments.dataset]
    folder = out_dir / (arguments.run_name or arguments.model)
    if arguments.resume and not (folder / runs.LAST).exists():
        raise command.UsageError(f"nothing to resume: there is no {folder / runs.LAST}")
    with runs.claim_folder(folder):
        saved = saved_run(folder, arguments)
        settings = settings_of(arguments, saved)
        history = saved["history"] if saved else []
        try:
            if has_ended(history, settings):
                print("All epochs are trained: writing the tables and pictures again.")
                # Its settings may be new ones, which end it sooner.
                runs.save_checkpoint(folder / runs.LAST, saved | {"settings": settings})
            else:
                train(arguments, folder, settings, saved, history, device)
            evaluate.evaluate_checkpoint(folder / runs.BEST, arguments.data_dir, device)
        except NotFinite as error:
            command.print_error(f"{error}; what was saved before is kept. Start again with a lower --learning-rate")
            return 1
        except KeyboardInterrupt:
            resumable = history and (folder / runs.LAST).exists()
            hint = resume_command() if resumable else "No epoch is complete yet: start again with the same command."
            print(f"\nStopped. {hint}", file=sys.stderr)
            raise
    return 0


def parse_arguments(argv):
    def setting(group, name, help, **how):
        """An option of the recipe. None unless given, so that a resumed run can tell."""
        default = "off" if RECIPE[name] is None or RECIPE[name] is False else RECIPE[name]
        group.add_argument(f"--{name.replace('_', '-')}", default=None, help=f"{help} (default: {default})", **how)

    parser = command.Parser(description="Train a network and evaluate its best epoch.", allow_abbrev=False)
    what = parser.add_argument_group("what to train")
    what.add_argument("--model", required=True, choices=models.MODELS, help="the network")
    what.add_argument(
        "--dataset", choices=data.CLASSES, default="cifar10", help="digits needs no download (default: %(default)s)"
    )

    recipe = parser.add_argument_group("recipe", "the defaults are the exercise's")
    setting(recipe, "epochs", "passes over the training split", type=command.number(int, 1, 10**6))
    setting(recipe, "learning_rate", "AdamW's step size", type=command.number(float, 1e-12, 1e12))
    setting(recipe, "batch_size", "images per step", type=command.number(int, 1, 10**4))
    setting(recipe, "weight_decay", "AdamW's decoupled weight decay", type=command.number(float, 0, 1e12))
    setting(recipe, "target_loss", "stop once the validation loss is as low", type=command.number(float, 0, 1e12))
    setting(recipe, "augment", "flip and shift training images at random", action="store_true")
    setting(
        recipe, "cutout", "side of a square hidden in each training image, in pixels", type=command.number(int, 0, 32)
    )
    setting(recipe, "label_smoothing", "share of the target spread over all classes", type=command.number(float, 0, 1))
    setting(
        recipe,
        "schedule",
        "of the learning rate; cosine: a short warm-up, then down to 0",
        choices=["constant", "cosine"],
    )
    setting(recipe, "seed", "of weights, batch order, dropout and augmentation", type=command.number(int, 0, 2**63 - 1))

    run = parser.add_argument_group("run folder")
    run.add_argument("--out-dir", type=Path, help="(default: outs/exercise_04, for digits outs/digits)")
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
        help="of the training step; auto: bf16 autocast where the hardware computes in it, else fp32 (default: %(default)s)",
    )
    machine.add_argument("--compile", action="store_true", help="use torch.compile; slower on a CPU (default: off)")
    return parser.parse_args(argv)


def choose_precision(name, device):
    """The precision to train in, bf16 or fp32: auto takes bf16 only where it is native, since emulated it is slow."""
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return "bf16" if native else "fp32"


def saved_run(folder, arguments):
    """The checkpoint to go on from, None for a new run; raises UsageError or CheckpointError where neither can be."""
    last = folder / runs.LAST
    if not arguments.resume:
        if last.exists() and not arguments.overwrite and not is_finished(folder):
            raise command.UsageError(f"{folder} holds an unfinished run: use --resume, or --overwrite to replace it")
        return None
    saved = runs.load_checkpoint(last)
    best = runs.load_checkpoint(folder / runs.BEST)  # without it, the run could not be evaluated at its end
    if not runs.RESUME_FIELDS.keys() <= saved.keys():
        raise runs.CheckpointError(f"{last} can't be resumed from: it holds no optimiser state")
    for name in ("model", "dataset"):
        if saved[name] != getattr(arguments, name):
            raise command.UsageError(f"{last} is of --{name} {saved[name]}, not {getattr(arguments, name)}")
    # What decides when the run ends may change, unless the learning rate depends on it; what an epoch does may not.
    may_change = {"target_loss"} if saved["settings"]["schedule"] == "cosine" else {"target_loss", "epochs"}
    for name in RECIPE:
        before, now = saved["settings"].get(name, RECIPE[name]), getattr(arguments, name)
        if now not in (None, before) and name not in may_change:
            raise command.UsageError(f"{last} is of a run with {name} {before}, not {now}: leave that option out")
    trained = max(saved["epoch"], best["epoch"])  # a kill can leave best.pt one epoch ahead
    if arguments.epochs is not None and arguments.epochs < trained:
        raise command.UsageError(f"{folder} has been trained for {trained} epochs: --epochs can't be less")
    return saved


def settings_of(arguments, saved):
    """The recipe of a run: what is given, else what the run was started with, else the exercise's."""
    given = {name: value for name in RECIPE if (value := getattr(arguments, name)) is not None}
    return RECIPE | (saved["settings"] if saved else {}) | given


def is_finished(folder):
    """Whether the run that wrote last.pt came to its end, metrics included."""
    try:
        saved = runs.load_checkpoint(folder / runs.LAST)
    except runs.CheckpointError:
        return False
    return has_ended(saved.get("history"), saved["settings"]) and (folder / runs.METRICS).exists()


def has_ended(history, settings):
    if not history:
        return False
    target = settings["target_loss"]
    reached = target is not None and history[-1]["validation_loss"] <= target
    return reached or history[-1]["epoch"] >= settings["epochs"]


def resume_command():
    options = [option for option in sys.argv[1:] if option not in ("--resume", "--overwrite")]
    return "Go on with:\n  " + shlex.join(["python", sys.argv[0], *options, "--resume"])


def train(arguments, folder, settings, saved, history, device):
    """Train all epochs that `history` lacks; after each, its row is added and the run folder is up to date.

    `saved` is the checkpoint to go on from, or None. Raises NotFinite.
    """
    precision = choose_precision(arguments.precision, device)
    started = {"compile": False} | saved["environment"] if saved else None  # older checkpoints don't say
    if started and arguments.precision == "auto":
        precision = started["precision"]

    splits = data.load_splits(arguments.dataset, arguments.data_dir, ("train", "validation"))
    normalisation = data.channel_statistics(splits["train"].images)
    write_examples(folder.parent, splits["train"], data.CLASSES[arguments.dataset])
    splits = {name: split.to(device) for name, split in splits.items()}

    torch.manual_seed(settings["seed"])
    model = models.build(arguments.model, *normalisation).to(device)
    optimizer = make_optimizer(model, settings)
    if saved:
        models.load_weights(model, saved["weights"], folder / runs.LAST)
        optimizer.load_state_dict(saved["optimizer"])
    forward = torch.compile(model.logits) if arguments.compile else model.logits
    autocast = make_autocast(device, precision)

    environment = {
        "torch_version": str(torch.__version__),
        "device": describe(device),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "compile": arguments.compile,
    }
    if started and started != environment:
        print(f"Note: the run was started with {started}; the same bits are not to be had with {environment}.")
    print(
        f"{arguments.model} on {arguments.dataset}: {models.count_parameters(model):,} parameters, "
        f"{len(splits['train'].labels):,} training and {len(splits['validation'].labels):,} validation images, "
        f"{environment['device']}, {precision}, {environment['threads']} threads",
        flush=True,
    )

    while not has_ended(history, settings):
        epoch = len(history) + 1
        start = time.perf_counter()
        train_loss, train_accuracy = train_epoch(model, forward, optimizer, splits["train"], settings, epoch, autocast)
        training_seconds = time.perf_counter() - start
        validation_loss, validation_accuracy = evaluate.mean_loss_and_accuracy(
            *evaluate.infer(model, splits["validation"])
        )
        if not math.isfinite(validation_loss):
            raise NotFinite(f"the validation loss is {validation_loss} after epoch {epoch}")
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "validation_loss": validation_loss,
            "validation_accuracy": validation_accuracy,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - start, 3),
        }
        history.append(row)
        checkpoint = {
            "format_version": runs.FORMAT_VERSION,
            "model": arguments.model,
            "dataset": arguments.dataset,
            "classes": data.CLASSES[arguments.dataset],
            "epoch": epoch,
            "settings": settings,
            "split_seed": data.SPLIT_SEED,
            "environment": environment,
            "seconds": float(sum(row["seconds"] for row in history)),
            "weights": model.state_dict(),
        }
        save_epoch(folder, checkpoint, optimizer, history)
        report(
            row,
            settings["epochs"],
            len(splits["train"].labels) / training_seconds,
            is_best=best_epoch(history) == epoch,
        )


def make_optimizer(model, settings):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), one kernel for all parameters."""
    return torch.optim.AdamW(
        model.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"], fused=True
    )


def make_autocast(device, precision):
    """The context of a forward pass: bfloat16 where it pays, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def train_epoch(model, forward, optimizer, split, settings, epoch, autocast):
    """One pass over the training split; its mean loss and accuracy, over the samples, while the weights moved.

    `forward` gives the logits (`model.logits`, or compiled). Loss and hits are summed on the device: the host waits for
    them only every CHECK_EVERY steps, when a loss that is no longer finite raises NotFinite, and at the end.
    """
    model.train()
    torch.manual_seed(data.derived_seed(settings["seed"], epoch, 2))  # dropout's masks: of this epoch alone
    batch_size = settings["batch_size"]
    steps = math.ceil(len(split.labels) / batch_size)
    losses = torch.zeros(steps, device=split.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    batches = data.batches(split, batch_size, settings["seed"], epoch, settings["augment"], settings["cutout"])
    for step, (images, labels) in enumerate(tqdm(batches, f"epoch {epoch}", steps, leave=False, disable=None)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at((epoch - 1) * steps + step, settings["epochs"] * steps, settings)
        loss, logits = train_step(forward, optimizer, images, labels, autocast, settings["label_smoothing"])
        losses[step] = loss * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            check_finite(losses[: step + 1], epoch)
    return losses.cpu().double().sum().item() / len(split.labels), correct.item() / len(split.labels)


def train_step(forward, optimizer, images, labels, autocast, label_smoothing=0.0):
    """Forward, backward, AdamW on one batch; the mean cross-entropy and the logits, both on the device.

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
        raise NotFinite(f"the training loss is {losses[bad[0]].item()} at epoch {epoch}, step {bad[0].item() + 1}")


def learning_rate_at(step, total_steps, settings):
    """The learning rate of a step, counted from 0 over all epochs: no state that a resume could lose."""
    if settings["schedule"] == "constant":
        return settings["learning_rate"]
    warm_up = math.ceil(WARM_UP * total_steps)
    if step < warm_up:
        return settings["learning_rate"] * (step + 1) / warm_up
    return settings["learning_rate"] * (1 + math.cos(math.pi * (step - warm_up) / (total_steps - warm_up))) / 2


def best_epoch(history):
    """The epoch of the highest validation accuracy, of equal ones that of the lowest validation loss."""
    return max(history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))["epoch"]


def save_epoch(folder, checkpoint, optimizer, history):
    """Bring a run folder up to date, in an order that leaves it resumable whenever the program dies."""
    if len(history) == 1:
        runs.remove_former_run(folder)
    (folder / runs.METRICS).unlink(missing_ok=True)  # from here on the run in the folder isn't finished
    # last.pt last: what it doesn't know of yet is done again, and what it knows of is there.
    if best_epoch(history) == checkpoint["epoch"]:
        runs.save_checkpoint(folder / runs.BEST, checkpoint)
    runs.write_atomically(folder / runs.HISTORY, runs.csv_bytes(history))
    runs.save_checkpoint(folder / runs.LAST, checkpoint | {"optimizer": optimizer.state_dict(), "history": history})


def write_examples(out_dir, split, classes):
    """Save and draw the first training images of every class, for the folder that holds the runs of a data set."""
    images = data.examples(split, per_class=10).numpy()
    runs.write_arrays(out_dir / runs.EXAMPLES, images=images, classes=classes)
    plots.draw_examples(out_dir)


def report(row, epochs, images_per_second, is_best):
    left = divmod(round(row["seconds"] * (epochs - row["epoch"])), 60)
    print(
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
        f"  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.2%}"
        f"  validation loss {row['validation_loss']:.4f} accuracy {row['validation_accuracy']:.2%}"
        f"  {images_per_second:,.0f} images/s  {row['seconds']:.1f} s  left {left[0]}:{left[1]:02d}{'  best' if is_best else ''}",
        flush=True,
    )


def describe(device):
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    cpu = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.processor() or platform.machine()
    return f"{device.type} ({cpu})"


if __name__ == "__main__":
    sys.exit(command.run_command(main))
