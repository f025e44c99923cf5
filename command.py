"""How every command behaves: shared options, one line for a mistake, exit codes, signals."""

import argparse
import math
import os
import platform
import signal
import sys
from pathlib import Path

import torch

DEFAULT_DATA_DIR = Path("data")


class UserError(Exception):
    """Something that the user can put right; the message says in one line what is wrong and what to do."""

    exit_code = 2


class UsageError(UserError):
    """Options that can't be used, or not together."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line, without the usage in front of it."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help shows the options)\n")


def add_common_arguments(group):
    group.add_argument(
        "--data-dir",
        type=Path,
        default=DEFAULT_DATA_DIR,
        help="folder of CIFAR-10, extracted or as archive; fetched into it where there is none (default: %(default)s)",
    )
    group.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, mps, ... (default: %(default)s)"
    )


def number(kind, low, high):
    """A type for argparse: an int or float within bounds; nan is in none."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} from {low} to {high:g}")
        return value

    return parse


def plain_name(text):
    if text in ("", "..") or text != Path(text).name:
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain folder name; --out-dir says where it goes")
    return text


def choose_device(name):
    """A torch.device that can be used here, set to compute the same each time; raises UsageError for one that can't.

    A CPU computes the same by itself, with the same number of threads.
    """
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it for that
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean fp32
    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"--device {name} can't be used here: {reason}") from error
    return device


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


def describe_device(device):
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    cpu = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.processor() or platform.machine()
    return f"{device.type} ({cpu})"


def describe_environment(device, precision="auto", compile=False, started=None):
    """What the bits of a training depend on besides its recipe, as a dict.

    `started` is that of the run's start, where a run goes on: it decides what "auto" precision is, any other
    difference is printed.
    """
    if started and precision == "auto":
        precision = started["precision"]
    environment = {
        "torch_version": str(torch.__version__),
        "device": describe_device(device),
        "precision": choose_precision(precision, device),
        "threads": torch.get_num_threads(),
        "compile": compile,
    }
    if started and {"compile": False} | started != environment:  # older checkpoints don't say it
        print(f"Note: the run was started with {started}; the same bits are not to be had with {environment}.")
    return environment


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is to end a program as tidily as Ctrl-C does."""


def raise_terminated(signal_number, frame):
    raise Terminated


def print_error(error):
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)


def run_command(main):
    """Call main() and return the exit code: 2 for a mistake of the user's, in one line; 130 and 143 for signals."""
    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        return main() or 0
    except UserError as error:
        print_error(error)
        return error.exit_code
    except OSError as error:
        print_error(f"{error.filename}: {error.strerror}" if error.filename else error)
    except RuntimeError as error:
        # Without a class of its own on CPUs and Apple's GPUs.
        if not any(phrase in str(error) for phrase in ("out of memory", "can't allocate memory")):
            raise
        print_error("out of memory: a smaller --batch-size, or a smaller model, needs less")
    except KeyboardInterrupt as interrupt:
        return 143 if isinstance(interrupt, Terminated) else 130
    return 2
