"""Kill runs with SIGKILL at random moments, resume them, and compare them with a run that was never interrupted.

    python -m tests.kill_runs [how many, 20] [seed, 0]

A moment is the instant before or after a training step, or before or after a file is flushed, renamed or removed. The
run kills itself at one of them, all equally likely, so that every part of a save gets its turn and nothing depends on
timing. Each run is a fork of this process, which saves the seconds for importing PyTorch; pictures are placeholders.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import command
import plots
import runs
import train

OPTIONS = ["--model", "cnn1", "--dataset", "digits", "--epochs", "4", "--batch-size", "300", "--augment"]


class Moments:
    """Counts moments, and kills the process at number `fatal`."""

    def __init__(self, fatal):
        self.count, self.fatal = 0, fatal
        for owner, name in ((train, "train_step"), (os, "fsync"), (os, "replace"), (Path, "unlink")):
            setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, function):
        def call(*arguments, **options):
            self.pass_moment()
            result = function(*arguments, **options)
            self.pass_moment()
            return result

        return call

    def pass_moment(self):
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def run(folder, *options, fatal=None):
    """Run train.py in a fork -> (number of moments, 0 if killed; exit code, negative for a signal)."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        plots.save = lambda figure, path: runs.write_atomically(path, b"no picture")
        moments = Moments(fatal)
        output = io.StringIO()
        code = 99
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = command.run_command(lambda: train.main([*OPTIONS, "--out-dir", str(folder), *options]))
        if code:
            sys.__stderr__.write(output.getvalue())
        os.write(writer, str(moments.count).encode())
        os._exit(code)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader) as pipe:
        return int(pipe.read() or 0), os.waitstatus_to_exitcode(status)


def evidence(folder):
    """What must be equal: weights, optimiser state, history and metrics without seconds, file names."""
    best, last = (runs.load_checkpoint(folder / "cnn1" / name) for name in ("best.pt", "last.pt"))
    state = [tensor for part in last.optimizer["state"].values() for tensor in part.values()]
    tensors = [*best.weights.values(), *last.weights.values(), *state]
    rows = (folder / "cnn1" / "history.csv").read_text().splitlines()
    metrics = json.loads((folder / "cnn1" / "metrics.json").read_text()) | {"seconds": None}
    files = sorted(path.name for path in (folder / "cnn1").iterdir())
    return [tensor.numpy().tobytes() for tensor in tensors], [row.rpartition(",")[0] for row in rows], metrics, files


def main():
    count, seed = (int(text) for text in (sys.argv[1:] + ["20", "0"][len(sys.argv) - 1 :]))
    choose = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        moments, code = run(Path(scratch) / "whole")
        assert code == 0, "the uninterrupted run failed"
        expected = evidence(Path(scratch) / "whole")
        epochs = []
        for number in range(count):
            folder = Path(scratch) / str(number)
            fatal = choose.randrange(moments)
            _, code = run(folder, fatal=fatal)
            assert code == -signal.SIGKILL, f"moment {fatal}: exit code {code}"
            saved = [folder / "cnn1" / name for name in ("best.pt", "last.pt")]
            loaded = [runs.load_checkpoint(path).epoch for path in saved if path.exists()]
            resumable = saved[1].exists()
            epochs.append(loaded[-1] if resumable else 0)
            _, code = run(folder, *(["--resume"] if resumable else []))
            assert code == 0, f"moment {fatal}: the resumed run ended with {code}"
            assert evidence(folder) == expected, f"killed at moment {fatal} of {moments}: different result"
    print(f"{count} runs killed at one of {moments} moments, after {epochs} epochs: all equal the uninterrupted one")


if __name__ == "__main__":
    main()
