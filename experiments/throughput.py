"""How fast is training, compared with a typical PyTorch script and with what the hardware allows?

Usage, with nothing else running:

    python -m experiments.throughput

For each network, these take turns in one process for several rounds, since the speed of a shared machine drifts:

- project: this project's own epoch (`train.train_epoch` on `data.batches`), in the precision of --precision auto;
- project fp32: the same with --precision fp32;
- usual script: torchvision's CIFAR10 with ToTensor and Normalize, a shuffling DataLoader with 0 and with 2 workers (the
  faster one counts), the same network in fp32 and PyTorch's default memory format, AdamW with its defaults,
  CrossEntropyLoss, loss.item() in every step;
- floor: the project's training step on one batch that stays in the cache, repeated.

Where the difference comes from, on a CPU with native bf16: no DataLoader and no PIL (a batch is indexed from memory);
channels_last from the uint8 images to the fully connected layers, where flattening is then a view; bf16 autocast; fused
AdamW.

Tried without benefit at batch size 32: OMP_WAIT_POLICY=active, a longer GOMP_SPINCOUNT, 2x2 pooling as a tree of
torch.maximum (faster forward, much slower backward).

Then, for cnn2 and vgg: the time per image in larger batches, with the peak memory; and the time per step, alone and
beside a process that keeps a core busy, with threads bound to cores (command.bind_threads) and free.
"""

import command

if __name__ == "__main__":
    command.start()


import contextlib
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import CIFAR10

import data
import models
import optimizers
import train
from recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent


def main(argv=None):
    parser = command.Parser(description="Measure the training speed.")
    parser.add_argument("--data-dir", type=Path, default=command.DEFAULT_DATA_DIR)
    parser.add_argument("--models", nargs="+", choices=models.MODELS, default=list(models.MODELS))
    parser.add_argument("--rounds", type=command.number(int, 1, 1000), default=7)
    parser.add_argument(
        "--json", type=Path, help="results file (default: throughput.json here, if all networks are measured)"
    )
    arguments = parser.parse_args(argv)
    if sys.platform == "win32":
        raise command.UsageError("peak memory can't be measured on Windows")

    device = command.choose_device("auto")
    precision = command.choose_precision("auto", device)
    machine = {
        "device": command.describe_device(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "rounds": arguments.rounds,
    }
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    results = {"machine": machine, "steps": {}}
    split = data.load_splits("cifar10", arguments.data_dir, ["train"])["train"].to(device)
    for name in arguments.models:
        results["steps"][name] = compare(name, split, arguments.data_dir, precision, arguments.rounds)
    few = min(arguments.rounds, 3)
    results["batches"] = {name: measure_batches(name, arguments.data_dir, precision, few) for name in ("cnn2", "vgg")}
    results["busy"] = {
        name: measure_busy(name, arguments.data_dir, precision, arguments.rounds) for name in ("cnn2", "vgg")
    }
    for title in ("batches", "busy"):
        print(f"\n{title}: {json.dumps(results[title], indent=1)}")
    if len(arguments.models) == len(models.MODELS):
        arguments.json = arguments.json or ROOT / "experiments" / "throughput.json"
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


class Project:
    """Training of one network with this project's own functions."""

    def __init__(self, name, split, precision):
        self.split = split
        torch.manual_seed(0)
        self.model = models.build(name)
        device = split.labels.device
        self.model.fit_input(split.images[:1000].cpu())
        self.model.to(device)
        self.optimizer = optimizers.make_optimizer(self.model, Recipe())
        self.forward = train.make_forward(self.model, device, {"precision": precision, "compile": False})
        order = torch.arange(Recipe.batch_size, device=device)
        _, *self.batch = next(data.batches(split, order, Recipe.batch_size, 0, 1))

    def epoch(self, images, batch_size=Recipe.batch_size):
        part = data.Split(self.split.images[:images], self.split.labels[:images])
        losses = torch.zeros(images, device=part.labels.device)
        train.train_epoch(self.model, self.forward, self.optimizer, part, Recipe(batch_size=batch_size), 1, losses)

    def resident(self, steps):
        for _ in range(steps):
            train.train_step(self.forward, self.optimizer, *self.batch)


class UsualScript:
    """A typical script, with the same layers. It runs in the same process, so with bound threads and kept memory."""

    def __init__(self, name, data_dir, workers, device):
        torch.manual_seed(0)
        layers = models.MODELS[name]().layers
        self.model = nn.Sequential(*(nn.Flatten() if isinstance(layer, models.Flatten) else layer for layer in layers))
        self.model.to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=Recipe.learning_rate)
        self.criterion = nn.CrossEntropyLoss()
        normalise = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
        self.dataset = CIFAR10(data_dir, train=True, transform=transforms.Compose([transforms.ToTensor(), normalise]))
        self.workers, self.device = workers, device

    def epoch(self, images):
        """Seconds for the steps, without starting the workers, whose share of a whole epoch is small."""
        batch_size = Recipe.batch_size
        subset = Subset(self.dataset, range(images + batch_size))
        self.model.train()
        running_loss = 0.0
        with all_cores():
            batches = iter(DataLoader(subset, batch_size, shuffle=True, num_workers=self.workers))
        for step, (inputs, labels) in enumerate(batches):
            inputs, labels = inputs.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            loss = self.criterion(self.model(inputs), labels)
            loss.backward()
            self.optimizer.step()
            running_loss += loss.item()
            if step == 0:
                start = time.perf_counter()
        return time.perf_counter() - start


def compare(name, split, data_dir, precision, rounds):
    """Measure all contestants on one network in turn; print and return milliseconds per step and ratios."""
    steps = 60 if name.startswith("vgg") else 400
    images = steps * Recipe.batch_size
    project, fp32 = Project(name, split, precision), Project(name, split, "fp32")
    usual = {workers: UsualScript(name, data_dir, workers, split.labels.device) for workers in (0, 2)}
    contestants = {
        "project": lambda: timed(project.epoch, images),
        "floor": lambda: timed(project.resident, steps),
        "project fp32": lambda: timed(fp32.epoch, images),
        "usual script, 0 workers": lambda: usual[0].epoch(images),
        "usual script, 2 workers": lambda: usual[2].epoch(images),
    }
    seconds = {contestant: [] for contestant in contestants}
    for round_number in range(rounds + 1):
        for contestant, run in contestants.items():
            elapsed = run()
            if round_number:  # the first round warms up
                seconds[contestant].append(elapsed)
    milliseconds = {contestant: summary([1000 * s / steps for s in runs]) for contestant, runs in seconds.items()}
    best = min(list(milliseconds)[-2:], key=lambda contestant: milliseconds[contestant]["median"])
    ratios = {
        "usual script / project": ratio(seconds[best], seconds["project"]),
        "usual script / project fp32": ratio(seconds[best], seconds["project fp32"]),
        "project / floor": ratio(seconds["project"], seconds["floor"]),
    }
    print(f"\n{name}, ms per step (median, minimum, maximum of {rounds} rounds of {steps} steps) and images/s")
    for contestant, values in milliseconds.items():
        speed = Recipe.batch_size / values["median"] * 1000
        print(f"  {contestant:<26}" + "".join(f"{value:9.3f}" for value in values.values()) + f"{speed:10,.0f}")
    print("ratios within a round (median, minimum, maximum)")
    for title, values in ratios.items():
        print(f"  {title:<30}" + "".join(f"{value:7.2f}" for value in values.values()), flush=True)
    return {"milliseconds": milliseconds, "ratios": ratios}


def timed(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def summary(values):
    return {"median": statistics.median(values), "minimum": min(values), "maximum": max(values)}


def ratio(slower, faster):
    return summary([a / b for a, b in zip(slower, faster)])


def measure_batches(name, data_dir, precision, rounds):
    """Microseconds per image and peak memory by batch size, each measured in a new process."""
    images = 2_048 if name == "vgg" else 16_384
    measured = {size: [] for size in (32, 128, 512)}
    for _ in range(rounds):
        for size, values in measured.items():
            with new_process() as process:
                values.append(process.apply(measure_batch, (name, data_dir, precision, images, size)))
    return {
        f"batch {size}": {
            "microseconds an image": summary([seconds / images * 1e6 for seconds, _ in values]),
            "peak memory in MB": round(max(peak for _, peak in values)),
        }
        for size, values in measured.items()
    }


def measure_batch(name, data_dir, precision, images, size):
    """Seconds for that many images, and this process's peak memory in MB, including reading the data."""
    split = data.load_splits("cifar10", data_dir, ["train"])["train"].to(command.choose_device("auto"))
    project = Project(name, split, precision)
    project.epoch(images, size)
    return timed(project.epoch, images, size), peak_memory()


def peak_memory():
    """This process's peak memory in MB. (On Linux, getrusage includes what the process used before exec.)"""
    import resource  # not on Windows

    if sys.platform == "linux":
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3
    return megabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def measure_busy(name, data_dir, precision, rounds):
    """Milliseconds per step with bound and with free threads, alone and beside a process that keeps a core busy."""
    measured = {f"{threads}, {state}": [] for threads in ("bound", "free") for state in ("alone", "busy")}
    before = os.environ.get("OMP_PROC_BIND")
    for _ in range(rounds):
        for threads in ("bound", "free"):
            os.environ["OMP_PROC_BIND"] = str(threads == "bound").lower()
            with new_process() as process:
                for state in ("alone", "busy"):
                    milliseconds = process.apply(measure_step, (name, data_dir, precision, state == "busy"))
                    measured[f"{threads}, {state}"].append(milliseconds)
    if before:
        os.environ["OMP_PROC_BIND"] = before
    else:
        del os.environ["OMP_PROC_BIND"]
    ratios = {
        "busy / alone, bound": ratio(measured["bound, busy"], measured["bound, alone"]),
        "busy / alone, free": ratio(measured["free, busy"], measured["free, alone"]),
    }
    return {"milliseconds": {title: summary(values) for title, values in measured.items()}, "ratios": ratios}


def measure_step(name, data_dir, precision, busy):
    """Milliseconds per step in this process; if `busy`, beside another process that keeps a core busy."""
    split = data.load_splits("cifar10", data_dir, ["validation"])["validation"].to(command.choose_device("auto"))
    project, steps = Project(name, split, precision), (20 if name == "vgg" else 200) * (1 if busy else 3)
    with all_cores():
        other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        project.resident(10)
        return 1000 * timed(project.resident, steps) / steps
    finally:
        if other:
            other.kill()
            other.wait()


@contextlib.contextmanager
def all_cores():
    """Let processes that are started here use all cores: they would inherit this thread's single one."""
    if not hasattr(os, "sched_setaffinity"):  # not Linux, so command.bind_threads does nothing
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count()))
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


@contextlib.contextmanager
def new_process():
    """A pool with one new process, whose memory and threads are untouched by earlier measurements."""
    with all_cores():
        pool = multiprocessing.get_context("spawn").Pool(1, command.keep_freed_memory)
    with pool:  # terminates it if there is an error
        yield pool
        pool.close()
        pool.join()


def megabytes(peak):
    """Convert getrusage's peak memory to MB: it is in bytes on macOS, in kilobytes elsewhere."""
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


if __name__ == "__main__":
    sys.exit(command.run_command(main))
