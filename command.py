"""What all commands share: options, choice of device and precision, one-line error messages, exit codes, signals.

A script that is run as a command calls start() before it imports any large library, and run_command(main) at the end.
Importing this module, or any other module of the project, has no side effects.
"""

import argparse
import contextlib
import ctypes
import errno
import glob
import math
import os
import platform
import shlex
import signal
import stat
import subprocess
import sys
import textwrap
from importlib import metadata
from pathlib import Path

DEFAULT_DATA_DIR = Path("data")
LOCK = ".lock"  # the lock file in a folder
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None  # read before threads are bound


def start():
    """Set up a command's process before torch is imported: bind its threads, print no traceback on Ctrl-C."""
    sys.excepthook = leave_quietly
    bind_threads()


def bind_threads():
    """Bind each of PyTorch's threads to its own core, with variables that OpenMP reads when torch is imported.

    Many times per step, the threads wait for each other in a busy loop. If another program keeps a core busy, the
    system may put two of them on one core, where one has to wait for the other's time slice to end. The user's own
    OpenMP or MKL settings take precedence, even a mere thread count: runs side by side would otherwise all be bound to
    the first cores.
    """
    set_already = any(name.startswith(("OMP_", "GOMP_", "MKL_")) for name in os.environ)
    if sys.platform == "linux" and not set_already:
        os.environ.update(OMP_PROC_BIND="true", OMP_PLACES="cores")


def leave_quietly(kind, error, traceback):
    """In place of sys.excepthook, for what happens outside run_command: no traceback for Ctrl-C, nor for an import that
    fails because of the machine, as Matplotlib's does without a writable folder for its cache."""
    if issubclass(kind, OSError):
        print_error(printable(error))
        sys.stderr.flush()
        os._exit(2)
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


class UserError(Exception):
    """An error that the user can fix. Each argument is a line; the first says what is wrong and what to do."""

    exit_code = 2

    def __str__(self):
        return "\n".join(map(printable, self.args))


class UsageError(UserError):
    """Options that are invalid, or can't be combined."""


def printable(text):
    """Text from outside (a file, a server, a path) as one line, its control characters escaped to protect terminals."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line, without the usage before it."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {printable(message)} (--help shows the options)\n")


def add_common_arguments(group):
    group.add_argument(
        "--data-dir",
        type=Path,
        default=DEFAULT_DATA_DIR,
        help="folder with CIFAR-10, extracted or as the archive; downloaded if missing (default: %(default)s)",
    )
    group.add_argument(
        "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, mps, ... (default: %(default)s)"
    )


def number(kind, low, high):
    """An argparse type: an int or a float from `low` to `high`; nan is rejected."""

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
    if text in ("", "..") or text != Path(text).name or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain folder name; --out-dir sets the folder around it")
    return text


def expand(paths):
    """Replace patterns (*, ?, [...]) by the paths that match them, because Windows shells leave that to the program.
    Existing paths and patterns without a match are kept."""
    expanded = []
    for path in paths:
        matches = [] if os.path.lexists(path) else sorted(map(Path, glob.glob(str(path))))
        expanded += matches or [path]
    return expanded


def read_bytes(path):
    """A file's content. Raises OSError, also for a pipe or a device, where reading could block forever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    with naming(path):
        return Path(path).read_bytes()


@contextlib.contextmanager
def naming(path):
    """Add the file name to an OSError, since one raised while reading or writing lacks it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class InUseError(UserError):
    """Another process is using the folder."""


@contextlib.contextmanager
def locked(folder, wait=""):
    """Lock a folder for the duration of the block, against other processes that do the same. The lock is released even
    if this process is killed.

    If another process holds the lock, print `wait` and wait for it; raise InUseError if `wait` is empty. If the file
    system doesn't support locks, continue without one.
    """
    import filelock

    lock = filelock.FileLock(Path(folder) / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not wait:
            raise InUseError(
                f"another process is writing to {folder}: wait until it ends, or choose another folder"
            ) from None
        print(wait, flush=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if os.access(folder, os.W_OK):  # read-only: no lock needed
            print(f"Note: {folder} can't be locked ({error}), so don't start a second run there.", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def choose_device(name):
    """Return the torch.device of that name; raises UsageError if it can't be used here.

    On CUDA and ROCm GPUs, deterministic algorithms are turned on. CPUs are deterministic as they are, for a given
    number of threads.
    """
    import torch

    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # slow, and never read here
        if hasattr(torch.backends.cudnn, "conv"):  # fp32 should mean fp32, not TF32
            torch.backends.cudnn.conv.fp32_precision = "ieee"
        else:  # PyTorch before 2.9
            torch.backends.cudnn.allow_tf32 = False
    automatic = name == "auto"
    if automatic:
        name = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    if reason := why_unusable(name):
        if not automatic:
            raise UsageError(f"--device {name} can't be used here: {reason}")
        print(f"Note: running on the CPU, because the GPU can't be used: {reason}", file=sys.stderr)
        name = "cpu"
    device = torch.device(name)
    if device.type != "cpu" and CORES:
        os.sched_setaffinity(0, CORES)  # undo bind_threads: with a GPU, CPU threads don't wait for each other
    return device


def why_unusable(device):
    """Why a device can't be used, in one line, or None if it can. Computes something on it, since a driver or GPU that
    is too old for this PyTorch often fails only then."""
    import torch

    try:
        torch.ones(2, device=device).sum().item()
    except (RuntimeError, AssertionError, ImportError) as error:
        return textwrap.shorten(str(error).partition("\n")[0], 160, placeholder=" ...")
    return None


def choose_precision(name, device):
    """The training precision, bf16 or fp32. "auto" means bf16 only where it is native, since emulation is slow."""
    import torch

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
    import torch

    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    cpu = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name") or platform.processor() or platform.machine()
    return f"{device.type} ({cpu})"


def describe_environment(device, precision="auto", compile=False, before=None):
    """Everything besides the recipe that determines the bits of a training run, as a dict.

    When a run is resumed, `before` is the environment of its earlier epochs: it decides what "auto" precision means,
    and any other difference is printed.
    """
    import torch

    if before and precision == "auto":
        precision = before["precision"]
    environment = {
        "torch_version": str(torch.__version__),
        "device": describe_device(device),
        "precision": choose_precision(precision, device),
        "threads": torch.get_num_threads(),
        "compile": compile,
    }
    if before and (before := {"compile": False} | before) != environment:  # older checkpoints lack it
        changed = [name for name, value in environment.items() if value != before.get(name)]
        changes = ", ".join(f"{name} changed from {before.get(name)} to {environment[name]}" for name in changed)
        print(f"Note: {changes}, so results won't be bit-identical to those of an uninterrupted run.")
    return environment


def compiled(function):
    """torch.compile(function), which raises UsageError if compilation fails, for example without a C++ compiler."""
    import torch

    fast = torch.compile(function)

    def call(*arguments):
        try:
            return fast(*arguments)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = textwrap.shorten(str(error), 160, placeholder=" ...")
            raise UsageError(f"--compile doesn't work here, so leave it out: {reason}") from error

    return call


@contextlib.contextmanager
def printing_how_to_resume(is_resumable):
    """If the block is interrupted or fails, print the command that resumes the run, provided that is_resumable().
    A UserError already says what to do."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if is_resumable():
            print(f"\nStopped. Resume with:\n  {resume_command()}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            print("\nStopped. No epoch is complete yet: start again with the same command.", file=sys.stderr)
        raise


def resume_command():
    options = [option for option in sys.argv[1:] if option not in ("--resume", "--overwrite")]
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join(["python", sys.argv[0], *options, "--resume"])


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, so that the program exits as cleanly as on Ctrl-C."""


def raise_terminated(signal_number, frame):
    raise Terminated


def print_error(error):
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)


def is_out_of_memory(error):
    """Checks the message too, since PyTorch has no exception class for it on CPUs and Apple GPUs."""
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)


def run_command(main):
    """Call main() and return the exit code: that of a UserError, 2 for a failure of the machine, each reported in one
    line; 130 for Ctrl-C, 143 for SIGTERM."""
    signal.signal(signal.SIGTERM, raise_terminated)
    prepare_output()
    keep_freed_memory()
    try:
        code = main() or 0
        sys.stdout.flush()  # so that a full disk or a closed pipe raises here
        return code
    except UserError as error:
        print_error(error)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            print_error("out of memory: close other programs, train a smaller model, or reduce --batch-size")
        elif "torchvision::" in str(error):  # importing torchvision failed
            installed = " and ".join(f"{name} {metadata.version(name)}" for name in ("torchvision", "torch"))
            print_error(f"{installed} are incompatible: pip install --force-reinstall torch torchvision")
        else:
            raise
    except OSError as error:
        if not error.filename:
            drop_output()
        print_error(f"{printable(error.filename or 'standard output')}: {error.strerror or error}")
    except KeyboardInterrupt as interrupt:
        return 143 if isinstance(interrupt, Terminated) else 130
    return 2


def prepare_output():
    """Make sure that printing never fails because a stream is missing or can't encode a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
            if stream.isatty():
                setattr(sys, name, Terminal(stream))


class Terminal:
    """A stream to a terminal that drops output once the terminal is closed, so that a background run continues."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self):
        with contextlib.suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def keep_freed_memory():
    """Make glibc reuse freed memory of any size. By default it returns blocks above 32 MB to the kernel, which zeroes
    them again, page by page, in every step with a large batch. A no-op with other C libraries."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def drop_output():
    """Discard output that is still buffered: Python would try to print it again at exit, and fail again."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
