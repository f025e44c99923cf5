"""How a network is trained: the settings of a training, their defaults, limits and options."""

import argparse
import dataclasses
import reprlib

import command
from augmentation import KINDS

# What the numbers may be: their type, the lowest and the highest.
LIMITS = {
    "epochs": (int, 1, 10**6),
    "learning_rate": (float, 1e-12, 1e12),
    "batch_size": (int, 1, 10**4),
    "weight_decay": (float, 0, 1e12),
    "target_loss": (float, 0, 1e12),
    "label_smoothing": (float, 0, 1),
    "skip_easy": (float, 0, 1),
    "seed": (int, 0, 2**63 - 1),
}
CHOICES = {"optimizer": ("adamw", "muon"), "schedule": ("constant", "linear")}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of a training, as they stand in checkpoints and metrics.json; train.py's options have their names.

    The defaults are the exercise's; they are also what a checkpoint means that is older than a field. Raises ValueError
    or TypeError for what the options wouldn't allow.
    """

    epochs: int = 80
    learning_rate: float = 1e-4
    batch_size: int = 32
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    target_loss: float | None = None  # a validation loss that ends the training
    augment: bool = False
    corrupt: str = ""  # shares of the training images by kind of corruption: "noise=0.3,blur=0.1"
    label_smoothing: float = 0.0
    skip_easy: float = 0.0  # the share of the training images that counts as easy
    schedule: str = "constant"  # of the learning rate
    seed: int = 0

    def __post_init__(self):
        parse_shares(self.corrupt)
        for name, (kind, low, high) in LIMITS.items():
            value = getattr(self, name)
            allowed = type(value) in (int, kind) and low <= value <= high
            if not allowed and (name, value) != ("target_loss", None):
                raise ValueError(f"{name} {reprlib.repr(value)}")
        for name, allowed in (CHOICES | {"augment": (False, True)}).items():
            value = getattr(self, name)
            if type(value) is not type(allowed[0]) or value not in allowed:
                raise ValueError(f"{name} {reprlib.repr(value)}")


def parse_shares(text):
    """The shares of Recipe.corrupt, "KIND=SHARE,...", as a dict; raises ValueError where they are none."""
    try:
        shares = {kind: float(share) for kind, share in (part.split("=") for part in text.split(",") if text)}
        possible = all(share > 0 for share in shares.values()) and sum(shares.values()) <= 1
    except (ValueError, AttributeError):
        possible = False
    if not possible or not shares.keys() <= KINDS.keys() or len(shares) < text.count("="):
        kinds = ", ".join(KINDS)
        raise ValueError(
            f"corrupt {reprlib.repr(text)} is not like noise=0.2,blur=0.1: kinds {kinds}; shares of 1 at most"
        )
    return shares


def add_options(parser):
    """Add an option for each setting. One that isn't given is missing among the parsed arguments: given_settings."""

    def option(name, help, **how):
        default = getattr(Recipe, name)
        default = "off" if default is None or default is False or default == "" else default
        if name in LIMITS:
            how = {"type": command.number(*LIMITS[name])} | how
        if name in CHOICES:
            how = {"choices": CHOICES[name]}
        group.add_argument(
            f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=f"{help} (default: {default})", **how
        )

    def loss_or_off(text):
        return None if text == "off" else command.number(*LIMITS["target_loss"])(text)

    def shares(text):
        try:
            parse_shares(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    group = parser.add_argument_group("recipe", "the defaults are the exercise's")
    option("epochs", "passes over the training split")
    option("optimizer", "muon: orthogonal steps for the kernels of convolutions, SGD for all else")
    option("learning_rate", "the optimiser's step size; with muon, in the norm of a kernel")
    option("batch_size", "images per step")
    option(
        "weight_decay",
        "share of the weights that a step takes off, times the learning rate; with muon, none of kernels, and through "
        "the momentum, in the long run, seven times as much of all else",
    )
    option("target_loss", "stop once the validation loss is as low; off lifts it on --resume", type=loss_or_off)
    option("augment", "mirror each training image in every other epoch, shift it, hide a square", action="store_true")
    option(
        "corrupt",
        f"corrupt shares of the training images, by kind of corruption ({', '.join(KINDS)})",
        type=shares,
        metavar="KIND=SHARE,...",
    )
    option("label_smoothing", "share of the target spread over all classes")
    option(
        "skip_easy",
        "share of the training images, those with the lowest recent losses, that only every third epoch visits",
    )
    option("schedule", "of the learning rate; linear: down to 0")
    option("seed", "of weights, batch order, dropout and augmentation")


def given_settings(arguments):
    """The settings whose options were given, as a dict."""
    return {name: value for name, value in vars(arguments).items() if name in Recipe.__annotations__}
