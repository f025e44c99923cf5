"""How every command behaves: shared options, the machine, one line for a mistake, exit codes, signals.

A script that is run as a command calls start() before it imports anything large, and run_command(main) at its end.
Importing this module, or any other of the project, changes nothing in the process.
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
LOCK = ".lock"  # the file by which a folder is held
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None  # before any thread is bound to one


def start():
    """Prepare the process of a command, before torch is imported: its threads, and a quiet answer to Ctrl-C."""
    sys.excepthook = leave_quietly
    bind_threads()


def bind_threads():
    """Have each of PyTorch's threads keep to a core of its own, by what OpenMP reads when torch is imported.

    The threads wait for each other many times a step, spinning. Where another program keeps a core busy, the system
    would put two of them on one core, and one would wait for the other's turn to end. A setting of the user's wins; so
    does a number of threads, since runs side by side would all be bound to the first cores.
    """
    set_already = any(name.startswith(("OMP_", "GOMP_", "MKL_")) for name in os.environ)
    if sys.platform == "linux" and not set_already:
        os.environ.update(OMP_PROC_BIND="true", OMP_PLACES="cores")


def leave_quietly(kind, error, traceback):
    """In place of sys.excepthook: no traceback for a Ctrl-C before run_command, or while another one is answered."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)


class UserError(Exception):
    """Something that the user can put right. Each argument is a line; the first says what is wrong and what to do."""

    exit_code = 2

    def __str__(self):
        return "\n".join(map(printable, self.args))


class UsageError(UserError):
    """Options that can't be used, or not together."""


def printable(text):
    """A text from outside (a file, a server, a path) that can't do anything to a terminal, in one line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line, without the usage in front of it."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {printable(message)} (--help shows the options)\n")


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
    if text in ("", "..") or text != Path(text).name or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain folder name; --out-dir says where it goes")
    return text


def expand(paths):
    """Paths, with those that don't exist but are patterns (*, ?, [...]) replaced by what matches them: Windows' shells
    leave that to the program."""
    expanded = []
    for path in paths:
        matches = [] if os.path.lexists(path) else sorted(map(Path, glob.glob(str(path))))
        expanded += matches or [path]
    return expanded


def read_bytes(path):
    """A file's content. Raises OSError, also for a pipe or a device, which could keep one waiting for ever."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    with naming(path):
        return Path(path).read_bytes()


@contextlib.contextmanager
def naming(path):
    """Give an OSError the name of its file: what fails while it is read or written doesn't say it."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


class InUseError(UserError):
    """A folder that another process holds."""


@contextlib.contextmanager
def locked(folder, wait=""):
    """Hold a folder against other processes that want it so, until the block or the process ends, however it ends.

    Where another has it, `wait`, a text, is printed while this one waits; raises InUseError if there is none. A file
    system that has no locks is used without.
    """
    import filelock

    lock = filelock.FileLock(Path(folder) / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not wait:
            raise InUseError(
                f"another process is writing to {folder}: wait for its end, or name another folder"
            ) from None
        print(wait, flush=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS):  # where none can write
            print(f"Note: {folder} can't be locked ({error}), so start no second run there.", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()


def choose_device(name):
    """A torch.device that can be used here; raises UsageError for one that can't.

    GPUs that CUDA or ROCm drives are set to compute the same each time. A CPU does so by itself, with the same number
    of threads.
    """
    import torch

    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS wants it for that
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # which takes time, and nothing reads it
        if hasattr(torch.backends.cudnn, "conv"):  # fp32 is to mean fp32
            torch.backends.cudnn.conv.fp32_precision = "ieee"
        else:  # PyTorch before 2.9
            torch.backends.cudnn.allow_tf32 = False
    automatic = name == "auto"
    if automatic:
        name = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    if reason := why_unusable(name):
        if not automatic:
            raise UsageError(f"--device {name} can't be used here: {reason}")
        print(f"Note: the GPU can't be used, so the CPU is: {reason}", file=sys.stderr)
        name = "cpu"
    device = torch.device(name)
    if device.type != "cpu" and CORES:
        os.sched_setaffinity(0, CORES)  # its threads don't wait for each other
    return device


def why_unusable(device):
    """Why nothing can be computed on a device, in a line; None where it can. A driver or a GPU that is too old for this
    PyTorch is often found only by trying."""
    import torch

    try:
        torch.ones(2, device=device).sum().item()
    except (RuntimeError, AssertionError, ImportError) as error:
        return textwrap.shorten(str(error).partition("\n")[0], 160, placeholder=" ...")
    return None


def choose_precision(name, device):
    """The precision to train in, bf16 or fp32: auto takes bf16 only where it is native, since emulated it is slow."""
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
    """What the bits of a training depend on besides its recipe, as a dict.

    `before` is that of the epochs before, where a run goes on: it decides what "auto" precision is, any other
    difference is printed.
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
    if before and (before := {"compile": False} | before) != environment:  # older checkpoints don't say it
        changed = [name for name, value in environment.items() if value != before.get(name)]
        changes = ", ".join(f"{name} changed from {before.get(name)} to {environment[name]}" for name in changed)
        print(f"Note: {changes}, so results won't be bit-identical to those of an uninterrupted run.")
    return environment


def compiled(function):
    """torch.compile(function), which raises UsageError where it can't be compiled, as without a C++ compiler."""
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
def explaining_how_to_go_on(is_resumable):
    """However the block ends before its time, say by which command the run goes on, if is_resumable() says that it can.
    A mistake of the user's says itself what to do."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if is_resumable():
            print(f"\nStopped. Go on with:\n  {resume_command()}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            print("\nStopped. No epoch is complete yet: start again with the same command.", file=sys.stderr)
        raise


def resume_command():
    options = [option for option in sys.argv[1:] if option not in ("--resume", "--overwrite")]
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join(["python", sys.argv[0], *options, "--resume"])


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is to end a program as tidily as Ctrl-C does."""


def raise_terminated(signal_number, frame):
    raise Terminated


def print_error(error):
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)


def is_out_of_memory(error):
    """PyTorch has no class of its own for it on CPUs and Apple's GPUs."""
    phrases = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)


def run_command(main):
    """Call main() and return the exit code: 2 for a mistake of the user's, in one line; 130 and 143 for signals."""
    signal.signal(signal.SIGTERM, raise_terminated)
    prepare_output()
    keep_freed_memory()
    try:
        code = main() or 0
        sys.stdout.flush()  # so that a full disk or a closed pipe is met here
        return code
    except UserError as error:
        print_error(error)
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            print_error("out of memory: end other programs, or train a smaller model or with a smaller --batch-size")
        elif "torchvision::" in str(error):  # its import failed
            installed = " and ".join(f"{name} {metadata.version(name)}" for name in ("torchvision", "torch"))
            print_error(f"{installed} don't fit: pip install --force-reinstall torch torchvision")
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
    """Have nothing that is printed raise an error for a stream that isn't there, or can't encode a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
            if stream.isatty():
                setattr(sys, name, Terminal(stream))


class Terminal:
    """A stream to a terminal. Once that is gone, what a program in the background prints is dropped."""

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
    """Have glibc use freed memory again, however much it is. By itself it returns all above 32 MB to the kernel, which
    then zeroes it anew, page by page, in every step with a large batch. Other C libraries know no such setting."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def drop_output():
    """Send what is still to be printed nowhere: Python would try it again at its end, and fail again."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
