"""How much faster is training on a GPU if its steps are captured as CUDA graphs, and are the weights the same?

Usage, on a machine with an NVIDIA GPU and nothing else running:

    python -m experiments.captured

At batch size 32, a GPU waits for Python to launch the kernels of a step one by one. A CUDA graph launches them all at
once. For each run, some epochs are trained in turn step by step and with captured steps, and the weights compared.
Writes captured.json here. train.py doesn't capture: this first has to show that it is worth it.
"""

import command

if __name__ == "__main__":
    command.start()

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

import optimizers
import runs
import train
from experiments.ablation import IMPROVED
from experiments.common import Variant
from recipe import Recipe

RUNS = {  # with the number of epochs to train
    "cnn2": (Variant("cnn2", Recipe()), 2),
    "vgg": (Variant("vgg", Recipe()), 2),
    "vgg_improved": (Variant("vgg_fast", IMPROVED), 6),
}
WARM_UP = 3  # steps before the capture, in which cuDNN and cuBLAS choose their kernels


class CapturedStep:
    """Does what train.train_step does. The first batch is captured as a CUDA graph, which is replayed for all batches
    of that size.

    It needs the network, and an optimiser that is capturable. See PyTorch's notes on CUDA graphs,
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self, model):
        self.model, self.graph = model, None

    def __call__(self, forward, optimizer, images, labels, label_smoothing):
        if self.graph is None:
            self.capture(forward, optimizer, images, labels, label_smoothing)
        if len(labels) != len(self.labels):  # the last batch of an epoch
            return train.train_step(forward, optimizer, images, labels, label_smoothing)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        return self.logits

    def capture(self, forward, optimizer, images, labels, label_smoothing):
        """Record the step. Recording needs some steps to warm up, whose effects are undone."""
        self.images, self.labels = images.clone(), labels.clone()
        before = [(tensor, tensor.clone()) for tensor in self.state(optimizer)]
        generator = torch.cuda.get_rng_state()

        def step():
            return train.train_step(forward, optimizer, self.images, self.labels, label_smoothing)

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(side)
        optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = step()
        known = {tensor.data_ptr() for tensor, _ in before}
        for tensor in self.state(optimizer):
            if tensor.data_ptr() not in known:  # the optimiser's state before its first step
                tensor.zero_()
        for tensor, value in before:
            tensor.copy_(value)
        torch.cuda.set_rng_state(generator)

    def state(self, optimizer):
        """All tensors that a step changes."""
        moments = [tensor for state in optimizer.state.values() for tensor in state.values()]
        return [tensor for tensor in (*self.model.state_dict().values(), *moments) if tensor is not None]


def train_run(run, device, data_dir, capture):
    """train.train with learning rates as tensors, and with captured steps if `capture`."""
    make_forward, make_optimizer, train_step = train.make_forward, optimizers.make_optimizer, train.train_step
    steps = []

    def forward_of(model, *rest):
        steps.append(CapturedStep(model))
        return make_forward(model, *rest)

    def step(*batch):
        with mock.patch.object(train, "train_step", train_step):
            return steps[0](*batch) if capture else train_step(*batch)

    with (
        mock.patch.object(train, "make_forward", forward_of),
        mock.patch.object(optimizers, "make_optimizer", lambda *which: make_optimizer(*which, capturable=True)),
        mock.patch.object(train, "train_step", step),
    ):
        return train.train(run, device, data_dir)


def main(argv=None):
    parser = command.Parser(description="Train with and without CUDA graphs, and compare.")
    command.add_common_arguments(parser)
    parser.add_argument("--rounds", type=command.number(int, 1, 100), default=3, help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    device = command.choose_device(arguments.device)
    if device.type != "cuda":
        raise command.UsageError("this needs an NVIDIA GPU")
    environment = command.describe_environment(device)
    results = {"machine": environment}
    for name, (variant, epochs) in RUNS.items():
        recipe, seconds, weights = dataclasses.replace(variant.recipe, epochs=epochs), {}, {}
        for capture in (False, True) * arguments.rounds:
            with tempfile.TemporaryDirectory() as folder:
                run = runs.Run(Path(folder), variant.name, "cifar10", recipe, environment, runs.new_id())
                start = time.perf_counter()
                history = train_run(run, device, arguments.data_dir, capture)
                took, way = time.perf_counter() - start, "captured" if capture else "step by step"
                seconds.setdefault(way, []).append([history[-1]["seconds"], took])
                weights[way] = runs.load_checkpoint(run.folder / runs.LAST).weights
        pairs = zip(weights["step by step"].values(), weights["captured"].values())
        results[name] = {
            "epochs": epochs,
            "equal weights": all(torch.equal(*pair) for pair in pairs),
            "last epoch, training, in seconds": {
                way: [statistics.median(each) for each in zip(*measured)] for way, measured in seconds.items()
            },
        }
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    Path(__file__).with_name("captured.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(command.run_command(main))
