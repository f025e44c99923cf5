import io
import math
import os
import shlex
import signal

import numpy as np
import pytest
import torch

import command
import data
import download
import evaluate
import models
import plots
import runs
import train
from conftest import (
    DIGITS,
    FILES,
    FILTERS,
    assert_same_weights,
    history_without_seconds,
    interrupt_call,
    interrupted,
    quick,
    start,
)


@pytest.mark.parametrize(("model", "accuracy"), [("cnn2", 0.95), ("dense", 0.9), ("cnn1", 0.9), ("vgg", 0.8)])
def test_one_command_trains_evaluates_and_draws(finished_run, model, accuracy):
    folder, output = finished_run(model)
    assert {path.name for path in folder.iterdir()} == FILES | (set() if model == "dense" else FILTERS)
    saved = np.load(folder / "predictions_test.npz")
    assert (saved["probabilities"].argmax(axis=1) == saved["labels"]).mean() >= accuracy
    assert np.allclose(saved["probabilities"].sum(axis=1), 1, atol=1e-5)


def test_without_a_terminal_each_epoch_prints_a_plain_line(finished_run):
    _, output = finished_run("cnn2")
    lines = [line.split("/")[0] for line in output.splitlines() if line.startswith("epoch")]
    assert lines == [f"epoch {epoch:>2}" for epoch in range(1, 11)]
    assert all(character == "\n" or character.isprintable() for character in output)


@pytest.fixture
def no_evaluation(monkeypatch):
    """Leave out the evaluation after training, which takes most of the time of a short run."""
    monkeypatch.setattr(evaluate, "evaluate_checkpoint", lambda *arguments: None)


RECIPES = {
    "vgg": ["--model", "vgg", "--augment", "--label-smoothing", "0.1", "--schedule", "linear"],  # it has dropout
    "vgg_fast": ["--model", "vgg_fast", "--augment", "--optimizer", "muon", "--learning-rate", "0.1"],
    "skip_easy": ["--model", "cnn1", "--skip-easy", "0.6", "--corrupt", "noise=0.5"],
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES.keys())
def test_resumed_run_equals_an_uninterrupted_one(call, tmp_path, monkeypatch, no_evaluation, options):
    """Interrupted in the middle of the second epoch. test_kill.py kills runs at any moment."""
    monkeypatch.setattr(data, "WARM_UP", 1)
    splits = {name: data.Split(*(part[:64] for part in split)) for name, split in data.split_digits(0).items()}
    monkeypatch.setattr(data, "split_digits", lambda split_seed: splits)
    options = [*options, *DIGITS, "--batch-size", 16, "--epochs", 2, "--out-dir", "out"]
    assert call(train.main, *options, "--run-name", "whole")[0] == 0
    with monkeypatch.context() as moment:
        interrupt_call(moment, train, "train_step", number=6)
        assert call(train.main, *options, "--run-name", "stopped")[0] == 130
    assert runs.load_checkpoint("out/stopped/last.pt").epoch == 1
    code, out, err = call(train.main, *options, "--run-name", "stopped", "--resume")
    assert code == 0, err
    assert_same_weights(tmp_path / "out/whole/last.pt", tmp_path / "out/stopped/last.pt")
    assert_same_weights(tmp_path / "out/whole/best.pt", tmp_path / "out/stopped/best.pt")
    assert history_without_seconds(tmp_path / "out/whole") == history_without_seconds(tmp_path / "out/stopped")


def test_same_command_is_bit_identical_and_another_seed_is_not(call, tmp_path, few_digits, no_evaluation):
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        quick(call, "--seed", seed, "--out-dir", ".", "--run-name", name, model="vgg", epochs=1)
    assert history_without_seconds(tmp_path / "first") == history_without_seconds(tmp_path / "second")
    assert_same_weights(tmp_path / "first/last.pt", tmp_path / "second/last.pt")
    assert history_without_seconds(tmp_path / "first") != history_without_seconds(tmp_path / "other")


def test_each_setting_of_the_recipe_has_an_effect(call, tmp_path, few_digits, no_evaluation, monkeypatch):
    monkeypatch.setattr(data, "WARM_UP", 1)
    changes = {
        "default": [],
        "learning rate": ["--learning-rate", "1e-3"],
        "batch size": ["--batch-size", "100"],
        "weight decay": ["--weight-decay", "1"],
        "augment": ["--augment"],
        "label smoothing": ["--label-smoothing", "0.1"],
        "schedule": ["--schedule", "linear"],
        "skip easy": ["--skip-easy", "0.5"],
        "corrupt": ["--corrupt", "blur=0.5"],
        "optimizer": ["--optimizer", "muon"],
    }
    losses = {}
    for name, options in changes.items():
        quick(call, *options, "--out-dir", ".", "--run-name", name)
        losses[name] = history_without_seconds(tmp_path / name)[-1]["train_loss"]
    assert len(set(losses.values())) == len(changes), losses


def test_loss_is_averaged_over_samples_and_computed_from_logits(call, tmp_path, few_digits, no_evaluation):
    """With a learning rate so small that no weight changes, the training loss is that of the initial network."""
    options = ["--learning-rate", "1e-12", "--precision", "fp32", "--skip-easy", "0.6"]
    quick(call, *options, "--out-dir", ".", epochs=1)
    split = data.load_splits("digits", "", ["train"])["train"]
    torch.manual_seed(0)
    model = models.build("cnn1")
    model.fit_input(split.images)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model.logits(split.images), split.labels, reduction="none")
        accuracy = (model(split.images).argmax(dim=1) == split.labels).double().mean().item()
    row = history_without_seconds(tmp_path / "cnn1")[0]
    assert float(row["train_loss"]) == pytest.approx(losses.mean().item(), rel=1e-5)
    assert float(row["train_accuracy"]) == pytest.approx(accuracy)
    saved = runs.load_checkpoint(tmp_path / "cnn1/last.pt").image_losses
    torch.testing.assert_close(saved, losses / 2, rtol=1e-4, atol=1e-4)  # the mean of the losses and the initial 0


def test_each_epoch_and_seed_has_its_own_order(call, monkeypatch, few_digits, no_evaluation):
    def watch(split, order, size, seed, epoch, augment, corrupt):
        asked.append((seed, epoch, augment))
        assert torch.equal(order.cpu(), data.epoch_order(torch.zeros(len(order)), 0, seed, epoch))
        return batches(split, order, size, seed, epoch, augment, corrupt)

    asked, batches = [], data.batches
    monkeypatch.setattr(data, "batches", watch)
    quick(call, "--augment", "--seed", 3)
    assert asked == [(3, 1, True), (3, 2, True)]


def test_label_smoothing_changes_the_target_and_not_the_logits():
    """One step of gradient descent on the logits themselves: the gradient is (softmax - smoothed target) / N."""
    labels = torch.tensor([3, 7])
    logits = torch.randn(2, 10, requires_grad=True)
    before = logits.detach().clone()
    optimizer = torch.optim.SGD([logits], lr=1.0)
    returned = train.train_step(lambda images: logits * 1, optimizer, None, labels, 0.1)
    target = 0.9 * torch.eye(10)[labels] + 0.1 / 10
    torch.testing.assert_close(before - logits.detach(), (before.softmax(dim=1) - target) / 2)
    assert torch.equal(returned, before)


def test_training_loads_no_test_images(call, monkeypatch, no_evaluation):
    asked, load_splits = [], data.load_splits

    def load(dataset, data_dir, names=runs.SPLITS, **options):
        asked.extend(names)
        return load_splits(dataset, data_dir, names, **options)

    monkeypatch.setattr(data, "load_splits", load)
    quick(call, epochs=1)
    assert asked == ["train", "validation"]


@pytest.mark.pictures
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "options", [["--model", "dense"], ["--model", "vgg_fast", "--augment", "--skip-easy", "0.6", "--batch-size", "64"]]
)
def test_networks_without_and_with_many_convolutions_are_drawn_with_any_run_name(call, tmp_path, few_digits, options):
    name = "lr$1e-3_$2 $\\frac{ 猫"
    code, out, err = call(train.main, *options, *DIGITS, "--epochs", 1, "--out-dir", ".", "--run-name", name)
    assert code == 0, err
    missing = set() if "vgg_fast" in options else {"filters.png", "inside.png"}
    assert {path.name for path in (tmp_path / name).glob("*.png")} == {*runs.pictures_of_a_run()} - missing


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # one of them isn't what auto chooses
def test_resumed_run_keeps_its_precision(call, tmp_path, few_digits, no_evaluation, precision):
    quick(call, "--out-dir", ".", "--precision", precision, "--run-name", "whole", epochs=2)
    quick(call, "--out-dir", ".", "--precision", precision, epochs=1)
    quick(call, "--out-dir", ".", "--resume", epochs=2)
    assert_same_weights(tmp_path / "whole/last.pt", tmp_path / "cnn1/last.pt")


def test_stopped_run_prints_a_working_resume_command(call, monkeypatch, few_digits):
    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "print_epoch", interrupted)
        err = quick(call, "--out-dir", ".", "--run-name", "my run", "--overwrite", code=130)[2]
    python, script, *options = shlex.split(err.splitlines()[-1])
    assert (python, script) == ("python", "train.py")
    assert call(train.main, *options)[0] == 0


def test_non_finite_loss_stops_the_run(call, tmp_path):
    code, out, err = quick(call, "--learning-rate", "1e12", "--out-dir", ".", model="cnn2", code=1)
    assert "epoch 1, step" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "cnn2/last.pt").exists()


def test_non_finite_validation_loss_keeps_the_previous_epoch(call, tmp_path, monkeypatch, few_digits):
    results = iter([(1.0, 0.1), (math.nan, 0.1)])
    monkeypatch.setattr(train, "mean_loss_and_accuracy", lambda predictions: next(results))
    assert "validation loss is nan after epoch 2" in quick(call, "--out-dir", ".", code=1)[2]
    assert runs.load_checkpoint(tmp_path / "cnn1/last.pt").epoch == 1


def test_ctrl_c_stops_a_run_at_once_and_says_how_to_resume(tmp_path):
    options = ["--model", "cnn1", *DIGITS, "--epochs", 100_000, "--run-name", "long"]
    with start("train.py", *options, folder=tmp_path) as process:
        next(line for line in process.stdout if "epoch      1/100000" in line)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1].startswith("  python ") and err.splitlines()[-1].endswith(" --resume")
    assert runs.load_checkpoint(tmp_path / "outs/digits/long/last.pt").epoch < 1000


def test_sigterm_is_an_interrupt_with_its_own_exit_code(call, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_step", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    code, out, err = quick(call, code=143)
    assert "start again with the same command" in err and "Traceback" not in err


MISTAKES = {
    "no model": (["--dataset", "digits"], "--model"),
    "unknown model": (["--model", "resnet"], "'resnet'"),
    "unknown option": (["--model", "cnn1", "--lr", "1"], "--lr"),
    "unknown device": (["--model", "cnn1", "--device", "abacus"], "--device abacus"),
    "absent device": (["--model", "cnn1", "--device", "cuda:99"], "--device cuda:99"),
    "both ways": (["--model", "cnn1", "--resume", "--overwrite"], "not allowed with"),
    "nothing to resume": (["--model", "cnn1", *DIGITS, "--resume"], "nothing to resume"),
    "run name with folders": (["--model", "cnn1", "--run-name", "a/b"], "'a/b'"),
    "run name with a tab": (["--model", "cnn1", "--run-name", "a\tb"], r"'a\tb'"),
    "device of two lines": (["--model", "cnn1", "--device", "a\nb"], r"--device a\nb"),
    "unknown option of two lines": (["--model", "cnn1", "a\nb"], r"a\nb"),
    "run name upwards": (["--model", "cnn1", "--run-name", ".."], "'..'"),
    "run folder is a file": (["--model", "cnn1", *DIGITS, "--out-dir", "file"], "file"),
    "data folder is a file": (["--model", "cnn1", "--data-dir", "file"], "file is not a folder"),
    "data folder in a file": (["--model", "cnn1", "--data-dir", "file/data"], "file"),
}
for option in ("--epochs", "--batch-size", "--seed"):
    for value in ("-1", "nan", "inf", "1.5", "1" + "0" * 5000, "many", "") + (("0",) if option != "--seed" else ()):
        MISTAKES[f"{option} {value:.9}"] = (["--model", "cnn1", *DIGITS, option, value], option)
for option, value, reason in (("--optimizer", "sgd", "muon"), ("--label-smoothing", "1.1", "from 0 to 1")):
    MISTAKES[f"{option} {value}"] = (["--model", "cnn1", *DIGITS, option, value], reason)
for option in ("--learning-rate", "--weight-decay", "--target-loss"):
    for value in ("-1", "nan", "inf", "1e999", "many", "") + (("0",) if option == "--learning-rate" else ()):
        MISTAKES[f"{option} {value}"] = (["--model", "cnn1", *DIGITS, option, value], option)


@pytest.mark.parametrize(("arguments", "reason"), MISTAKES.values(), ids=MISTAKES.keys())
def test_usage_error_prints_one_line_and_changes_nothing(call, tmp_path, arguments, reason):
    (tmp_path / "file").write_text("precious")
    code, out, err = call(train.main, *arguments)
    assert code == 2 and out == ""
    assert reason in err and len(err.splitlines()) == 1 and "Traceback" not in err
    assert (tmp_path / "file").read_text() == "precious"
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"file", ".lock"}


def test_terminal_shows_a_progress_bar(tmp_path, monkeypatch, few_digits, no_evaluation):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.chdir(tmp_path)
    train.main(["--model", "cnn1", *DIGITS, "--epochs", "1"])
    assert "epoch 1" in terminal.getvalue() and "\r" in terminal.getvalue()


def test_compiled_training_saves_plain_weight_names(call, tmp_path, monkeypatch, few_digits, no_evaluation):
    compiled, compile = [], torch.compile
    # Dynamo only, since not every machine has a C++ compiler.
    monkeypatch.setattr(torch, "compile", lambda target: compiled.append(target) or compile(target, backend="eager"))
    quick(call, "--compile", "--out-dir", ".", epochs=1)
    assert len(compiled) == 1
    assert not [name for name in runs.load_checkpoint(tmp_path / "cnn1/best.pt").weights if "_orig_mod" in name]


def test_bf16_is_chosen_only_where_it_is_native(monkeypatch):
    cpu = torch.device("cpu")
    for bf16, amx, expected in ((True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda bf16=bf16: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert command.choose_precision("auto", cpu) == expected
    assert command.choose_precision("bf16", cpu) == "bf16" and command.choose_precision("fp32", cpu) == "fp32"


@pytest.mark.parametrize(
    ("place", "name", "calls"),
    [
        ("a step", "train.train_step", 50),
        ("a save", "runs.os.fsync", 4),
        ("a rename", "runs.os.replace", 5),
        ("the final evaluation", "evaluate.split_metrics", 2),
        ("the pictures", "plots.draw_run", 1),
    ],
)
def test_run_interrupted_at_any_point_can_be_resumed(call, two_epochs, tmp_path, monkeypatch, place, name, calls):
    owner, _, attribute = name.rpartition(".")
    owner = {"train": train, "runs.os": runs.os, "evaluate": evaluate, "plots": plots}[owner]
    with monkeypatch.context() as moment:
        interrupt_call(moment, owner, attribute, calls)
        _, _, err = quick(call, "--out-dir", ".", epochs=2, code=130)
    assert err.splitlines()[-1].startswith("  python") and err.splitlines()[-1].endswith("--resume"), place
    assert not list(tmp_path.rglob("*.tmp"))
    quick(call, "--out-dir", ".", "--resume", epochs=2)
    assert_same_weights(two_epochs / "best.pt", tmp_path / "cnn1/best.pt")
    assert {path.name for path in (tmp_path / "cnn1").iterdir()} == FILES | FILTERS


def test_interrupted_download_ends_the_command_quietly(call, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "fetch_from", interrupted)
    code, _, err = call(train.main, "--model", "cnn1")
    assert code == 130 and "Traceback" not in err and "same command" in err
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]


@pytest.mark.pictures
def test_loss_curve_is_drawn_while_the_run_trains(call, tmp_path, monkeypatch, few_digits):
    monkeypatch.setattr(train, "print_epoch", interrupted)  # after the first of two epochs
    code, out, err = quick(call, "--out-dir", ".", code=130)
    assert "cnn1/loss_plot.png" in out
    assert (tmp_path / "cnn1/loss_plot.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "cnn1/metrics.json").exists()
