import errno
import io
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import command
import evaluate
import plots
import runs
import train
from conftest import ROOT, start
from recipe import Recipe

SCRIPTS = pytest.mark.parametrize("script", ["train.py", "evaluate.py", "plots.py"])


def run(*words, variables=None, folder=ROOT):
    """Run Python with these words and more environment variables -> CompletedProcess."""
    environment = os.environ | (variables or {})
    words = [sys.executable, *map(str, words)]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@SCRIPTS
def test_ctrl_c_during_imports_prints_no_traceback(tmp_path, script):
    (tmp_path / "numpy.py").write_text("raise KeyboardInterrupt")  # as if pressed while a large library is imported
    done = run(ROOT / script, variables={"PYTHONPATH": str(tmp_path)})
    assert done.returncode in (130, -2) and done.stderr == ""


@SCRIPTS
def test_usage_error_is_reported_without_slow_imports(tmp_path, script):
    """With PYTHONSAFEPATH, Python itself doesn't find the modules beside the script."""
    words = ["-X", "importtime", ROOT / script, "--model", "cnn1", "--no-such-option"]
    done = run(*words, variables={"PYTHONSAFEPATH": "1"}, folder=tmp_path)
    assert done.returncode == 2 and "(--help shows the options)" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "numpy" in imported and not imported & {"torchvision", "sklearn", "scipy"}


@pytest.mark.skipif(sys.platform != "linux", reason="threads are bound on Linux only")
def test_threads_are_bound_to_cores_unless_the_user_configures_them(monkeypatch):
    program = """
import command
command.start()
import os
before = os.sched_getaffinity(0)
import torch
torch.rand(10**7).sum()
print(len(before) > 1 and os.sched_getaffinity(0) < before)
"""
    for name in os.environ:
        if name.startswith(("OMP_", "GOMP_", "MKL_")):
            monkeypatch.delenv(name)
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {Path(siblings.format(number)).read_text() for number in os.sched_getaffinity(0)}
    assert run("-c", program).stdout.strip() == str(len(cores) > 1)
    for name in ("OMP_PROC_BIND", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        with monkeypatch.context() as environment:
            environment.setenv(name, "2")
            before = dict(os.environ)
            command.bind_threads()
            assert os.environ == before


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads are bound on Linux only")
def test_importing_modules_has_no_side_effects():
    modules = ", ".join(path.stem for path in ROOT.glob("*.py"))
    program = f"""
import os, signal, sys
def state():
    threads = {{name: value for name, value in os.environ.items() if name.startswith(("OMP_", "GOMP_", "CUBLAS_"))}}
    return os.sched_getaffinity(0), threads, signal.getsignal(signal.SIGTERM), list(sys.path), sys.excepthook
before = state()
import matplotlib, torch
style = dict(matplotlib.rcParams)
import {modules}
import experiments.ablation, experiments.seeds, experiments.tables, experiments.throughput
torch.rand(10**6).sum()
print(before == state(), style == dict(matplotlib.rcParams), torch.are_deterministic_algorithms_enabled())
"""
    done = run("-c", program)
    assert done.stdout.strip() == "True True False", done.stderr


def test_second_ctrl_c_prints_no_traceback(tmp_path):
    program = """
import command
command.start()
def main():
    try:
        raise KeyboardInterrupt
    finally:
        raise KeyboardInterrupt
def answer(error):
    raise KeyboardInterrupt
command.print_error = answer
def fail():
    raise command.UsageError("wrong")
command.run_command(main)
command.run_command(fail)
"""
    done = run("-c", program)
    assert done.returncode in (130, -2) and done.stderr == ""


def test_import_that_fails_because_of_the_machine_gets_one_line_and_others_keep_their_traceback():
    """As Matplotlib's import fails without a writable folder for its cache."""
    done = run("-c", "import command\ncommand.start()\nraise OSError('no folder for the cache')")
    assert done.returncode == 2 and done.stderr == "-c: no folder for the cache\n"
    done = run("-c", "import command\ncommand.start()\nraise ValueError('a bug')")
    assert done.returncode == 1 and "Traceback" in done.stderr and "a bug" in done.stderr


@pytest.mark.parametrize("main", [train.main, evaluate.main, plots.main], ids=lambda main: main.__module__)
def test_help_lists_the_options(call, main):
    code, out, err = call(main, "--help")
    assert code == 0 and err == "" and out.startswith("usage")
    if main is train.main:
        assert all(f"--{name.replace('_', '-')}" in out for name in Recipe.__annotations__)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory: .*--batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: .*--batch-size"),
        (RuntimeError("CUDA out of memory. Tried"), "out of memory: .*--batch-size"),
        (RuntimeError("MPS backend out of memory"), "out of memory: .*--batch-size"),
        (RuntimeError("operator torchvision::nms does not exist"), f".* torch {torch.__version__[:4]}.*pip install"),
        (OSError(28, "No space left on device"), "standard output: No space left on device"),
        (command.UserError("a \x1b[2J\n says", "and a second line"), r"a \\x1b\[2J\\n says\nand a second line"),
    ],
)
def test_failures_of_the_machine_are_told_in_a_line(call, error, message):
    def main(arguments):
        raise error

    code, out, err = call(main)
    assert code == 2 and re.fullmatch(f"test_command.py: {message}.*\n", err)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a Linux device")
def test_output_to_a_full_disk_prints_one_line(finished_run):
    words = [sys.executable, ROOT / "plots.py", finished_run("cnn1")[0]]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2 and done.stderr == "plots.py: standard output: No space left on device\n"


@pytest.mark.slow
def test_run_with_a_closed_pipe_says_how_to_resume(tmp_path):
    options = ["--model", "cnn1", "--dataset", "digits", "--epochs", 100_000]
    with start("train.py", *options, folder=tmp_path) as process:
        for line in process.stdout:
            if "epoch      1/" in line:
                break
        process.stdout.close()  # as `| head` does
        assert process.wait(timeout=120) == 2
        err = process.stderr.read()
    assert "--resume" in err and "Traceback" not in err


def test_closed_streams_and_unencodable_characters_are_harmless(monkeypatch, capsys):
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    monkeypatch.setattr(sys, "stderr", None)

    def main():
        print("猫")
        print("to a closed stream", file=sys.stderr)

    assert command.run_command(main) == 0
    assert ascii_only.buffer.getvalue() == b"\\u732b\n"


def test_waiting_for_another_process_is_announced(tmp_path, monkeypatch):
    def wait():
        with command.locked(tmp_path, "Waiting for the other one"):
            said.append("has it")

    def say(text, **options):
        said.append(text)
        waits.set()

    said, waits, thread = [], threading.Event(), threading.Thread(target=wait)
    monkeypatch.setattr("builtins.print", say)
    with command.locked(tmp_path):
        thread.start()
        waits.wait()
        said.append("is free")
    thread.join()
    assert said == ["Waiting for the other one", "is free", "has it"]


def test_read_error_names_the_file(call, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    code, out, err = call(lambda arguments: command.read_bytes(__file__))
    assert code == 2 and err.endswith("test_command.py: Input/output error\n")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_reading_a_pipe_fails_instead_of_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (command.read_bytes, runs.load_checkpoint, runs.read_rows):
        with pytest.raises(OSError, match="Not a regular file"):
            read(tmp_path / "pipe")


def test_file_system_without_locks_is_used_anyway(tmp_path, monkeypatch, capsys):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl = pytest.importorskip("fcntl", reason="Windows locks in another way")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with command.locked(tmp_path):
        pass
    out, err = capsys.readouterr()
    assert "can't be locked" in err and len(err.splitlines()) == 1


def test_unusable_gpu_is_reported_and_replaced_by_the_cpu(call, monkeypatch, capsys):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))  # which isn't here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        command, "why_unusable", lambda device: "too old" if torch.device(device).type == "cuda" else None
    )
    assert command.choose_device("auto") == torch.device("cpu")
    assert "on the CPU, because the GPU can't be used: too old" in capsys.readouterr().err
    with pytest.raises(command.UsageError, match="--device cuda can't be used here: too old"):
        command.choose_device("cuda")


@pytest.mark.skipif(not command.CORES, reason="threads are bound on Linux only")
def test_threads_are_not_bound_with_a_gpu(monkeypatch):
    monkeypatch.setattr(command, "why_unusable", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bound = {min(command.CORES)}
    os.sched_setaffinity(0, bound)
    try:
        assert command.choose_device("cpu").type == "cpu" and os.sched_getaffinity(0) == bound
        assert command.choose_device("cuda").type == "cuda" and os.sched_getaffinity(0) == command.CORES
    finally:
        os.sched_setaffinity(0, command.CORES)


def test_failed_compilation_prints_one_line(monkeypatch):
    def refuse(function):
        def call(*arguments):
            raise torch._dynamo.exc.BackendCompilerFailed(None, RuntimeError("No C++ compiler\nwas found"), None)

        return call

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(command.UsageError, match=r"^--compile doesn't work here.*No C\+\+ compiler was found"):
        command.compiled(abs)(1)


def test_patterns_that_the_shell_did_not_expand_are_expanded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.pt", "a.pt", "[c].pt"):
        Path(name).touch()
    paths = command.expand([Path("*.pt"), Path("[c].pt"), Path("d*.pt")])
    assert paths == [Path("[c].pt"), Path("a.pt"), Path("b.pt"), Path("[c].pt"), Path("d*.pt")]


@pytest.mark.skipif(os.name == "nt", reason="needs a Unix terminal")
def test_training_continues_when_its_terminal_is_closed(tmp_path):
    terminal, end = os.openpty()
    words = [sys.executable, ROOT / "train.py", "--model", "dense", "--dataset", "digits", "--epochs", "1"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=end, stderr=end, start_new_session=True) as process:
        os.close(end)
        os.read(terminal, 10)  # it has started to print
        os.close(terminal)
        assert process.wait(timeout=240) == 0
    assert (tmp_path / "outs/digits/dense/metrics.json").exists()
