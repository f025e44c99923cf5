"""The recipe of a training run: its settings, their defaults, limits and command-line options."""

import argparse
import dataclasses
import reprlib

import command
from augmentation import KINDS

# Numeric settings: type, minimum and maximum.
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
    """The settings of a training run, as saved in checkpoints and metrics.json; train.py's options have the same names.

    The defaults are the exercise's; they are also used for fields that an older checkpoint lacks. Raises ValueError or
    TypeError for values that the options wouldn't allow.
    """

    epochs: int = 80
    learning_rate: float = 1e-4
    batch_size: int = 32
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    target_loss: float | None = None  # stop at this validation loss
    augment: bool = False
    corrupt: str = ""  # share of the training images for each kind of corruption: "noise=0.3,blur=0.1"
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
    """Parse Recipe.corrupt, "KIND=SHARE,...", into a dict; raises ValueError if it is invalid."""
    try:
        shares = {kind: float(share) for kind, share in (part.split("=") for part in text.split(",") if text)}
        possible = all(share > 0 for share in shares.values()) and sum(shares.values()) <= 1 + 1e-9
    except (ValueError, AttributeError):
        possible = False
    if not possible or not shares.keys() <= KINDS.keys() or len(shares) < text.count("="):
        kinds = ", ".join(KINDS)
        raise ValueError(
            f"corrupt {reprlib.repr(text)} should look like noise=0.2,blur=0.1, with kinds from {kinds} and "
            "shares that sum to 1 at most"
        )
    return shares


def add_options(parser):
    """Add an option for each setting. Options not given are absent from the parsed arguments: see given_settings."""

    def option(name, help, **kwargs):
        default = getattr(Recipe, name)
        default = "off" if default is None or default is False or default == "" else default
        if name in LIMITS:
            kwargs = {"type": command.number(*LIMITS[name])} | kwargs
        if name in CHOICES:
            kwargs = {"choices": CHOICES[name]}
        group.add_argument(
            f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=f"{help} (default: {default})", **kwargs
        )

    def loss_or_off(text):
        return None if text == "off" else command.number(*LIMITS["target_loss"])(text)

    def shares(text):
        try:
            given = parse_shares("" if text == "off" else text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return ",".join(f"{kind}={given[kind]:g}" for kind in KINDS if kind in given)

    group = parser.add_argument_group("recipe", "the defaults are the exercise's")
    option("epochs", "passes over the training split")
    option("optimizer", "muon: orthogonalised steps for convolution kernels, SGD for all other weights")
    option("learning_rate", "step size of the optimiser; with muon, relative to the norm of a kernel")
    option("batch_size", "images per step")
    option(
        "weight_decay",
        "each step shrinks the weights by this share, times the learning rate; with muon, kernels don't decay, and "
        "momentum makes all other weights decay seven times as fast in the long run",
    )
    option("target_loss", "stop once the validation loss is this low; off removes it on --resume", type=loss_or_off)
    option(
        "augment", "flip each training image in every other epoch, translate it, cut out a square", action="store_true"
    )
    option(
        "corrupt",
        f"corrupt these shares of the training images; kinds: {', '.join(KINDS)}",
        type=shares,
        metavar="KIND=SHARE,...",
    )
    option("label_smoothing", "share of the target probability that is spread over all classes")
    option(
        "skip_easy",
        "visit this share of the training images, those with the lowest recent losses, only in every third epoch",
    )
    option("schedule", "learning-rate schedule; linear: decay to 0")
    option("seed", "random seed for weights, batch order, dropout and augmentation")


def given_settings(arguments):
    """The settings that were given as options, as a dict."""
    return {name: value for name, value in vars(arguments).items() if name in Recipe.__annotations__}
