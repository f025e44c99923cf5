import command

import csv
import io
import math
import os
import shlex
import signal

import numpy as np
import pytest
import torch

import data
import download
import evaluate
import models
import optimizers
import plots
import runs
import train
from conftest import leave_out_pictures, start

DIGITS = ["--dataset", "digits"]
FILES = {
    "best.pt",
    "last.pt",
    "history.csv",
    "metrics.json",
    "predictions_test.npz",
    "loss_plot.png",
    "calibration.png",
    "mistakes.npz",
    "mistakes.png",
    "random_predictions.npz",
    "random_predictions.png",
    *(f"{kind}_{split}.png" for kind in ("confusion_matrix", "metrics") for split in ("train", "validation", "test")),
}
FILTERS = {"filters.npz", "filters.png", "inside.npz", "inside.png"}  # of networks with convolutions


def history_without_seconds(folder):
    with open(folder / "history.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_weights(*paths):
    first, *others = (runs.load_checkpoint(path)["weights"] for path in paths)
    for other in others:
        assert first.keys() == other.keys()
        for name in first:
            assert torch.equal(first[name], other[name]), name


def output_until(process, text):
    """Read a process's output up to a line that contains `text`."""
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came: {process.stderr.read()}")


@pytest.mark.parametrize(("model", "accuracy"), [("cnn2", 0.95), ("dense", 0.9), ("cnn1", 0.9), ("vgg", 0.8)])
def test_one_command_trains_evaluates_and_draws(finished_run, model, accuracy):
    folder, output = finished_run(model)
    assert {path.name for path in folder.iterdir()} == FILES | (set() if model == "dense" else FILTERS)
    saved = np.load(folder / "predictions_test.npz")
    assert (saved["probabilities"].argmax(axis=1) == saved["labels"]).mean() >= accuracy
    assert np.allclose(saved["probabilities"].sum(axis=1), 1, atol=1e-5)


def test_without_a_terminal_there_is_a_plain_line_for_each_epoch(finished_run):
    _, output = finished_run("cnn2")
    lines = [line.split("/")[0] for line in output.splitlines() if line.startswith("epoch")]
    assert lines == [f"epoch {epoch:>2}" for epoch in range(1, 11)]
    assert all(character == "\n" or character.isprintable() for character in output)


def test_best_is_the_epoch_of_the_highest_validation_accuracy_then_the_lowest_loss():
    rows = [(0.5, 1.0), (0.7, 1.3), (0.7, 1.2), (0.7, 1.25), (0.6, 0.9)]
    history = [
        {"epoch": number, "validation_accuracy": accuracy, "validation_loss": loss}
        for number, (accuracy, loss) in enumerate(rows, 1)
    ]
    assert train.best_epoch(history) == 3
    assert train.best_epoch(history[:2]) == 2


RECIPES = {
    "plain": ["--model", "cnn2"],
    "improved": ["--model", "cnn2", "--augment", "--label-smoothing", "0.1", "--schedule", "linear"],
    "vgg": ["--model", "vgg", "--augment", "--schedule", "linear"],  # dropout and batch normalisation
    "vgg_fast": ["--model", "vgg_fast", "--augment", "--optimizer", "muon", "--learning-rate", "0.1"],
    "skip_easy": ["--model", "cnn1", "--skip-easy", "0.6"],
}


@pytest.mark.parametrize("options", RECIPES.values(), ids=RECIPES.keys())
def test_stopped_and_resumed_is_as_if_never_interrupted(call, tmp_path, monkeypatch, few_digits, options):
    """Stopped in the middle of the second epoch. That a run is killed, at any moment: test_kill.py."""
    monkeypatch.setattr(train, "WARM_UP", 1)
    options = [*options, *DIGITS, "--batch-size", 64, "--epochs", 2, "--out-dir", "out"]
    assert call(train.main, *options, "--run-name", "whole")[0] == 0
    with monkeypatch.context() as moment:
        interrupt_call(moment, train, "train_step", number=8)
        assert call(train.main, *options, "--run-name", "stopped")[0] == 130
    assert runs.load_checkpoint("out/stopped/last.pt")["epoch"] == 1
    code, out, err = call(train.main, *options, "--run-name", "stopped", "--resume")
    assert code == 0, err
    assert_same_weights(tmp_path / "out/whole/last.pt", tmp_path / "out/stopped/last.pt")
    assert_same_weights(tmp_path / "out/whole/best.pt", tmp_path / "out/stopped/best.pt")
    assert history_without_seconds(tmp_path / "out/whole") == history_without_seconds(tmp_path / "out/stopped")
    assert (tmp_path / "out/stopped/confusion_matrix_test.png").exists()


def interrupt_call(monkeypatch, owner, name, number):
    """Let the call of that number, from 1, of a function raise KeyboardInterrupt in its place."""
    function, left = getattr(owner, name), [number]

    def interrupted(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


def quick(call, *options, model="cnn1", epochs=2, code=0):
    result = call(train.main, "--model", model, *DIGITS, "--epochs", epochs, *options)
    assert result[0] == code, result
    return result


def test_same_command_twice_gives_the_same_bits_and_another_seed_others(call, tmp_path, few_digits):
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        quick(call, "--seed", seed, "--out-dir", ".", "--run-name", name, model="vgg", epochs=1)
    assert history_without_seconds(tmp_path / "first") == history_without_seconds(tmp_path / "second")
    assert_same_weights(tmp_path / "first/last.pt", tmp_path / "second/last.pt")
    assert history_without_seconds(tmp_path / "first") != history_without_seconds(tmp_path / "other")


def test_each_setting_of_the_recipe_does_something(call, tmp_path, few_digits, monkeypatch):
    monkeypatch.setattr(train, "WARM_UP", 1)
    changes = {
        "default": [],
        "learning rate": ["--learning-rate", "1e-3"],
        "batch size": ["--batch-size", "100"],
        "weight decay": ["--weight-decay", "1"],
        "augment": ["--augment"],
        "label smoothing": ["--label-smoothing", "0.1"],
        "schedule": ["--schedule", "linear"],
        "skip easy": ["--skip-easy", "0.5"],
        "optimizer": ["--optimizer", "muon"],
    }
    losses = {}
    for name, options in changes.items():
        quick(call, *options, "--out-dir", ".", "--run-name", name)
        losses[name] = history_without_seconds(tmp_path / name)[-1]["train_loss"]
    assert len(set(losses.values())) == len(changes), losses


def test_linear_schedule_falls_to_nothing(call, tmp_path, few_digits):
    recipe = train.Recipe(schedule="linear", learning_rate=0.5)
    rates = [optimizers.learning_rate_at(step, 200, recipe) for step in range(200)]
    assert rates[0] == 0.5 and rates[100] == 0.25 and rates[199] == pytest.approx(0.0025)
    # Two epochs of two steps; history.csv has the rate of an epoch's last one.
    quick(call, "--schedule", "linear", "--learning-rate", "0.004", "--batch-size", "150", "--out-dir", ".")
    rates = [float(row["learning_rate"]) for row in history_without_seconds(tmp_path / "cnn1")]
    assert rates == pytest.approx([0.003, 0.001])


def test_loss_is_averaged_over_samples_and_taken_on_the_logits(call, tmp_path):
    """With a rate so small that no weight changes, training loss is the loss of the initial network, by hand."""
    options = ["--learning-rate", "1e-12", "--precision", "fp32", "--skip-easy", "0.6"]
    quick(call, *options, "--out-dir", ".", epochs=1)
    split = data.load_splits("digits", "", ["train"])["train"]
    torch.manual_seed(0)
    model = models.build("cnn1")
    model.adapt(split.images)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model.logits(split.images), split.labels, reduction="none")
        accuracy = (model(split.images).argmax(dim=1) == split.labels).double().mean().item()
    row = history_without_seconds(tmp_path / "cnn1")[0]
    assert float(row["train_loss"]) == pytest.approx(losses.mean().item(), rel=1e-5)
    assert float(row["train_accuracy"]) == pytest.approx(accuracy)
    saved = runs.load_checkpoint(tmp_path / "cnn1/last.pt")["image_losses"]
    torch.testing.assert_close(saved, losses / 2, rtol=1e-4, atol=1e-4)  # the mean of that and what was before, 0


def test_easy_are_the_images_of_the_lowest_loss_after_three_epochs():
    losses, recipe = torch.tensor([3.0, 0, 2, 1, 4]), train.Recipe(skip_easy=0.4)
    assert train.easy_images(losses, recipe, 3) is None
    assert train.easy_images(losses, recipe, 4).tolist() == [False, True, False, True, False]


def test_each_epoch_and_seed_has_an_order_of_its_own(call, monkeypatch, few_digits):
    def watch(split, order, size, seed, epoch, augment=False):
        asked.append((seed, epoch, augment))
        assert torch.equal(order.cpu(), data.epoch_order(len(order), seed, epoch))
        return batches(split, order, size, seed, epoch, augment)

    asked, batches = [], data.batches
    monkeypatch.setattr(data, "batches", watch)
    for seed in (3, 4):
        quick(call, "--augment", "--seed", seed, "--out-dir", ".", "--run-name", seed)
    assert asked == [(3, 1, True), (3, 2, True), (4, 1, True), (4, 2, True)]


def test_label_smoothing_lowers_the_target_and_leaves_the_reported_loss():
    """One step of gradient descent on the logits themselves: softmax minus the smoothed target, over N."""
    labels = torch.tensor([3, 7])
    logits = torch.randn(2, 10, requires_grad=True)
    before = logits.detach().clone()
    optimizer = torch.optim.SGD([logits], lr=1.0)
    autocast = train.make_autocast(torch.device("cpu"), "fp32")
    loss, returned = train.train_step(lambda images: logits * 1, optimizer, None, labels, autocast, 0.1)
    target = 0.9 * torch.eye(10)[labels] + 0.1 / 10
    torch.testing.assert_close(before - logits.detach(), (before.softmax(dim=1) - target) / 2)
    torch.testing.assert_close(loss, -before.log_softmax(dim=1)[[0, 1], labels].mean())
    assert torch.equal(returned, before)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_orthogonalised_keeps_directions_and_evens_out_sizes(shape):
    left, sizes, right = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    sizes[:] = torch.linspace(1, 0.2, len(sizes))
    result = optimizers.orthogonalised(left @ sizes.diag() @ right)
    inner = left.T @ result @ right.T
    torch.testing.assert_close(inner, inner.diagonal().diag(), atol=1e-5, rtol=0)
    assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.3


def test_muon_turns_kernels_by_the_learning_rate_and_leaves_the_rest_to_sgd():
    torch.manual_seed(0)
    recipe = train.Recipe(optimizer="muon", learning_rate=0.1, weight_decay=0.0, batch_size=8)
    factors = optimizers.FACTORS
    model = models.build("cnn2")
    images, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)
    model.adapt(images)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    autocast = train.make_autocast(torch.device("cpu"), "fp32")
    train.train_step(model.logits, optimizers.make_optimizer(model, recipe), images, labels, autocast)
    for name, weight in model.named_parameters():
        if weight.ndim == 4:
            start = before[name] * math.sqrt(len(weight)) / before[name].norm()
            turned = torch.linalg.svdvals((weight.detach() - start).flatten(1)) / 0.1
            assert 0.5 < turned.median() < 1.3 and turned.max() < 1.3, name
        else:
            step = before[name] - weight.detach()
            torch.testing.assert_close(step, 1.85 * 0.1 * 8 * factors["rest"] * weight.grad)  # Nesterov's first one
    model = models.build("vgg")
    (fast,) = (
        group["params"]
        for group in optimizers.make_optimizer(model, recipe).param_groups
        if group["factor"] == 8 * factors["biases"]
    )
    assert {*fast} == {layer.bias for layer in model.layers if isinstance(layer, torch.nn.BatchNorm2d)}


def test_weight_decay_with_muon_is_that_of_the_help():
    """None of kernels, whose norm is kept; of all else the learning rate's share, sped up by the momentum."""
    recipe = train.Recipe(optimizer="muon", learning_rate=0.01, weight_decay=0.01)
    model = models.build("cnn2")
    optimizer, norms = optimizers.make_optimizer(model, recipe), []
    for _ in range(300):
        for weight in model.parameters():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        norms.append(model.layers[-1].weight.detach().norm().item())
    lost = math.log(norms[99] / norms[299]) / 200
    assert lost == pytest.approx(0.01 * 0.01 / (1 - optimizers.MOMENTUM), rel=0.03)
    assert model.layers[0].weight.detach().norm().item() == pytest.approx(math.sqrt(32), rel=1e-4)


def test_target_loss_ends_the_run(call, tmp_path):
    _, out, _ = quick(call, "--target-loss", "0.5", "--out-dir", ".", epochs=50)
    history = history_without_seconds(tmp_path / "cnn1")
    losses = [float(row["validation_loss"]) for row in history]
    assert losses[-1] <= 0.5 < min(losses[:-1]) and len(losses) < 50
    assert (tmp_path / "cnn1/metrics.json").exists()


def test_target_loss_can_be_lifted(call, tmp_path):
    quick(call, "--target-loss", "100", "--out-dir", ".", "--run-name", "run")
    assert "The target loss is reached" in quick(call, "--out-dir", ".", "--run-name", "run", "--resume")[1]
    out = quick(call, "--out-dir", ".", "--run-name", "run", "--resume", "--target-loss", "off")[1]
    assert "epoch 2/2" in out
    assert runs.load_checkpoint(tmp_path / "run/last.pt")["settings"]["target_loss"] is None


def test_best_of_another_run_is_not_taken_for_this_ones(call, tmp_path):
    quick(call, "--out-dir", ".", "--run-name", "other", epochs=1)
    quick(call, "--out-dir", ".", "--run-name", "run", epochs=2)
    last = runs.load_checkpoint(tmp_path / "run/last.pt")
    last["history"][0]["validation_accuracy"] = 1.0  # the first epoch is the best: last.pt doesn't hold it
    runs.save_checkpoint(tmp_path / "run/last.pt", last)
    other = runs.load_checkpoint(tmp_path / "other/best.pt")  # which on a fast machine may have taken as long
    runs.save_checkpoint(tmp_path / "run/best.pt", other | {"seconds": other["seconds"] + 1})
    code, out, err = quick(call, "--out-dir", ".", "--run-name", "run", "--resume", epochs=3, code=2)
    assert "best.pt is not of the run in" in err and "--overwrite" in err and len(err.splitlines()) == 1


def test_what_a_kill_leaves_an_epoch_behind_comes_back(call, tmp_path):
    """last.pt is written first; best.pt and history.csv may be those of the epoch, or of the run, before."""
    quick(call, "--out-dir", ".", "--run-name", "other", epochs=1)
    quick(call, "--out-dir", ".", "--run-name", "run", epochs=2)
    whole = (tmp_path / "run/best.pt").read_bytes(), (tmp_path / "run/history.csv").read_bytes()
    for name in ("best.pt", "history.csv"):
        (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert "All epochs are trained" in quick(call, "--out-dir", ".", "--run-name", "run", "--resume", epochs=2)[1]
    assert runs.load_checkpoint(tmp_path / "run/best.pt")["epoch"] == 2
    assert_same_weights(tmp_path / "run/best.pt", tmp_path / "run/last.pt")
    assert (tmp_path / "run/history.csv").read_bytes() == whole[1]


def test_training_asks_for_no_test_images(call, monkeypatch):
    asked, load_splits = [], data.load_splits

    def load(dataset, data_dir, names=runs.SPLITS, **options):
        asked.extend(names)
        return load_splits(dataset, data_dir, names, **options)

    monkeypatch.setattr(data, "load_splits", load)
    monkeypatch.setattr(evaluate, "evaluate_checkpoint", lambda *arguments: None)
    quick(call, epochs=1)
    assert asked == ["train", "validation"]


@pytest.mark.pictures
@pytest.mark.filterwarnings("error")
def test_any_printable_run_name_can_stand_in_a_title(call, tmp_path, few_digits):
    name = "lr$1e-3_$2 $\\frac{ 猫"
    quick(call, "--out-dir", ".", "--run-name", name, epochs=1)
    assert (tmp_path / name / "loss_plot.png").exists()


@pytest.mark.pictures
@pytest.mark.parametrize(
    "options", [["--model", "dense"], ["--model", "vgg_fast", "--augment", "--skip-easy", "0.6", "--batch-size", "64"]]
)
def test_pictures_of_networks_without_and_with_many_convolutions(call, tmp_path, few_digits, options):
    code, out, err = call(train.main, *options, *DIGITS, "--epochs", 1, "--out-dir", ".", "--run-name", "run")
    assert code == 0, err
    missing = set() if "vgg_fast" in options else {"filters.png", "inside.png"}
    assert {path.name for path in (tmp_path / "run").glob("*.png")} == {*runs.pictures_of_a_run()} - missing


@pytest.mark.parametrize(
    "damage",
    [
        {"optimizer": {}},
        {"optimizer": {"state": {}, "param_groups": []}},
        {"optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        {"optimizer": {"state": {number: {"step": torch.tensor(1.0)} for number in range(6)}}},
        {"optimizer": {"state": [1, 2]}},
        {"history": []},
        {"history": [{"epoch": 1}]},
        {"image_losses": torch.zeros(3)},
        {"split_seed": 1},
    ],
)
def test_state_that_can_not_be_gone_on_with_gets_one_line(call, tmp_path, few_digits, damage):
    quick(call, "--out-dir", ".", epochs=1)
    last = tmp_path / "cnn1/last.pt"
    runs.save_checkpoint(last, runs.load_checkpoint(last) | damage)
    code, out, err = quick(call, "--out-dir", ".", "--resume", code=2)
    assert len(err.splitlines()) == 1


def test_resume_continues_a_finished_run_with_more_epochs_and_its_own_settings(call, tmp_path):
    common = ["--seed", "5", "--augment", "--out-dir", "."]
    quick(call, *common, "--run-name", "four", epochs=4)
    quick(call, *common, epochs=2)
    quick(call, "--out-dir", ".", "--resume", epochs=4)
    assert_same_weights(tmp_path / "four/last.pt", tmp_path / "cnn1/last.pt")
    code, out, err = quick(call, "--out-dir", ".", "--resume", epochs=4)
    assert "All epochs are trained" in out


def test_resume_knows_settings_that_a_former_version_did_not_save(call, two_epochs, tmp_path):
    quick(call, "--out-dir", ".", epochs=1)
    last = tmp_path / "cnn1/last.pt"
    saved = runs.load_checkpoint(last)
    for name in ("optimizer", "label_smoothing"):
        del saved["settings"][name]
    runs.save_checkpoint(last, saved)
    quick(call, "--out-dir", ".", "--resume", "--label-smoothing", "0.1", epochs=2, code=2)
    quick(call, "--out-dir", ".", "--resume", epochs=2)
    assert history_without_seconds(tmp_path / "cnn1") == history_without_seconds(two_epochs)


def test_linear_schedule_can_not_be_extended(call, tmp_path, few_digits):
    options = ["--schedule", "linear", "--out-dir", "."]
    quick(call, *options, epochs=1)
    assert "epochs 1, not 2" in quick(call, *options, "--resume", epochs=2, code=2)[2]


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


def test_extended_run_is_unfinished_until_it_is_evaluated_again(call, tmp_path, monkeypatch):
    quick(call, "--out-dir", ".", epochs=1)
    with monkeypatch.context() as evaluation:
        evaluation.setattr(evaluate, "evaluate_checkpoint", interrupted)
        quick(call, "--out-dir", ".", "--resume", epochs=2, code=130)
    assert "unfinished" in quick(call, "--out-dir", ".", epochs=2, code=2)[2]
    assert "less" in quick(call, "--out-dir", ".", "--resume", epochs=1, code=2)[2]
    quick(call, "--out-dir", ".", "--resume", epochs=2)


def test_a_stopped_run_can_be_ended_where_it_is(call, tmp_path, monkeypatch):
    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "report", interrupted)
        quick(call, "--out-dir", ".", epochs=3, code=130)
    quick(call, "--out-dir", ".", "--resume", epochs=1)
    quick(call, "--out-dir", ".", epochs=1)  # and is finished: a new run may replace it


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # one of them is not what auto chooses
def test_resumed_run_keeps_its_precision(call, tmp_path, few_digits, precision):
    quick(call, "--out-dir", ".", "--precision", precision, "--run-name", "whole", epochs=2)
    quick(call, "--out-dir", ".", "--precision", precision, epochs=1)
    quick(call, "--out-dir", ".", "--resume", epochs=2)
    assert_same_weights(tmp_path / "whole/last.pt", tmp_path / "cnn1/last.pt")


def test_nothing_of_a_replaced_run_stays(call, tmp_path, monkeypatch, few_digits):
    options = ["--out-dir", ".", "--run-name", "run"]
    quick(call, *options, epochs=1)
    with monkeypatch.context() as first_step:
        interrupt_call(first_step, train, "train_step", 1)
        err = quick(call, *options, model="dense", code=130)[2]
    assert "start again with the same command" in err and "--resume" not in err
    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "report", interrupted)
        quick(call, *options, model="dense", code=130)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"best.pt", "last.pt", "history.csv"}


def test_hint_of_a_stopped_run_is_a_command_that_works(call, monkeypatch, few_digits):
    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "report", interrupted)
        err = quick(call, "--out-dir", ".", "--run-name", "my run", "--overwrite", code=130)[2]
    python, script, *options = shlex.split(err.splitlines()[-1])
    assert (python, script) == ("python", "train.py")
    assert call(train.main, *options)[0] == 0


def test_full_disk_at_the_first_save_leaves_the_former_best(call, tmp_path, monkeypatch):
    quick(call, "--out-dir", ".", epochs=1)
    former = (tmp_path / "cnn1/best.pt").read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(runs.os, "fsync", full)
        assert "last.pt: No space left" in quick(call, "--out-dir", ".", "--seed", "1", epochs=1, code=2)[2]
    assert (tmp_path / "cnn1/best.pt").read_bytes() == former


def test_finished_run_is_replaced_but_an_unfinished_one_only_when_told(call, tmp_path):
    options = ["--out-dir", "."]
    quick(call, *options, "--seed", "1")
    quick(call, *options, "--seed", "2")  # the first was finished
    second = (tmp_path / "cnn1/last.pt").read_bytes()
    (tmp_path / "cnn1/metrics.json").unlink()  # as if killed before its end
    code, out, err = quick(call, *options, "--seed", "3", code=2)
    assert "--resume" in err and "--overwrite" in err and len(err.splitlines()) == 1
    assert (tmp_path / "cnn1/last.pt").read_bytes() == second
    quick(call, *options, "--seed", "3", "--overwrite")
    assert (tmp_path / "cnn1/last.pt").read_bytes() != second


def test_loss_that_is_not_finite_stops_the_run(call, tmp_path):
    code, out, err = quick(call, "--learning-rate", "1e12", "--out-dir", ".", model="cnn2", code=1)
    assert "epoch 1, step" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "cnn2/last.pt").exists()


def test_validation_loss_that_is_not_finite_keeps_the_epoch_before(call, tmp_path, monkeypatch, few_digits):
    results = iter([(1.0, 0.1), (math.nan, 0.1)])
    monkeypatch.setattr(train, "mean_loss_and_accuracy", lambda predictions: next(results))
    assert "validation loss is nan after epoch 2" in quick(call, "--out-dir", ".", code=1)[2]
    assert runs.load_checkpoint(tmp_path / "cnn1/last.pt")["epoch"] == 1


@pytest.mark.parametrize(
    ("which", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_signals_end_a_run_at_once_and_tell_how_to_go_on(call, tmp_path, which, code):
    options = ["--model", "cnn1", *DIGITS, "--epochs", 100_000, "--run-name", "long"]
    with start("train.py", *options, folder=tmp_path) as process:
        output_until(process, "epoch      2/100000")
        process.send_signal(which)
        out, err = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in err
    words = err.splitlines()[-1].split()
    assert words[0] == "python" and words[-1] == "--resume"
    trained = runs.load_checkpoint(tmp_path / "outs/digits/long/last.pt")["epoch"]
    code, out, err = call(train.main, *words[2:], "--epochs", trained + 1)
    assert code == 0 and f"epoch {trained + 1}/{trained + 1}" in out


def test_sigterm_is_an_interrupt_with_an_exit_code_of_its_own(call, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_step", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    code, out, err = quick(call, code=143)
    assert "start again with the same command" in err and "Traceback" not in err


@pytest.mark.skipif(command.fcntl is None, reason="Windows has no locks")
def test_two_runs_never_share_a_folder(call, tmp_path):
    with runs.claim_folder(tmp_path / "outs/digits/cnn1"):
        for options in ([], ["--overwrite"]):
            code, out, err = quick(call, *options, code=2)
            assert "another run is writing" in err and len(err.splitlines()) == 1
    quick(call, epochs=1)


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
def test_a_mistake_gets_one_line_and_changes_nothing(call, tmp_path, arguments, reason):
    (tmp_path / "file").write_text("precious")
    code, out, err = call(train.main, *arguments)
    assert code == 2 and out == ""
    assert reason in err and len(err.splitlines()) == 1 and "Traceback" not in err
    assert (tmp_path / "file").read_text() == "precious"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "cnn2", *DIGITS], "--model cnn1, not cnn2"),
        (["--model", "cnn1"], "--dataset digits, not cifar10"),
        (["--model", "cnn1", *DIGITS, "--batch-size", "64"], "batch_size 32, not 64"),
        (["--model", "cnn1", *DIGITS, "--augment"], "augment False, not True"),
        (["--model", "cnn1", *DIGITS, "--label-smoothing", "0.1"], "label_smoothing 0.0, not 0.1"),
    ],
)
def test_a_run_is_not_resumed_as_another(call, tmp_path, options, reason):
    quick(call, "--out-dir", ".", "--run-name", "run", epochs=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    code, out, err = call(train.main, *options, "--out-dir", ".", "--run-name", "run", "--resume")
    assert code == 2 and reason in err and len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_damaged_or_plain_checkpoints_are_not_resumed_from(call, tmp_path):
    quick(call, "--out-dir", ".", epochs=1)
    last = tmp_path / "cnn1/last.pt"
    whole = last.read_bytes()
    for content, reason in (
        (whole[:-100], "damaged"),
        ((tmp_path / "cnn1/best.pt").read_bytes(), "no optimiser state"),
    ):
        last.write_bytes(content)
        code, out, err = quick(call, "--out-dir", ".", "--resume", code=2)
        assert "last.pt" in err and reason in err and len(err.splitlines()) == 1
    last.write_bytes(whole)
    (tmp_path / "cnn1/best.pt").unlink()
    quick(call, "--out-dir", ".", "--resume")  # the last epoch was the best: last.pt has it too
    assert (tmp_path / "cnn1/best.pt").exists()


def test_full_disk_keeps_the_last_good_checkpoint(call, tmp_path, monkeypatch):
    quick(call, "--out-dir", ".", "--run-name", "whole", epochs=3)
    fsync, calls = runs.os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 4:  # in the second epoch: 1 to 3 are of the first
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as disk:
        disk.setattr(runs.os, "fsync", full)
        code, out, err = quick(call, "--out-dir", ".", epochs=3, code=2)
    assert "No space left" in err and "cnn1" in err and len(err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    assert runs.load_checkpoint(tmp_path / "cnn1/last.pt")["epoch"] >= 1
    quick(call, "--out-dir", ".", "--resume", epochs=3)
    assert_same_weights(tmp_path / "whole/last.pt", tmp_path / "cnn1/last.pt")


def test_a_terminal_gets_a_progress_bar(call, tmp_path, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.chdir(tmp_path)
    train.main(["--model", "cnn1", *DIGITS, "--epochs", "1"])
    assert "epoch 1" in terminal.getvalue() and "\r" in terminal.getvalue()


def test_compiled_training_saves_plain_names(monkeypatch, call, tmp_path):
    compiled, compile = [], torch.compile
    # Dynamo alone: a C++ compiler is not everywhere.
    monkeypatch.setattr(torch, "compile", lambda target: compiled.append(target) or compile(target, backend="eager"))
    quick(call, "--compile", "--out-dir", ".", epochs=1)
    assert len(compiled) == 1
    assert not [name for name in runs.load_checkpoint(tmp_path / "cnn1/best.pt")["weights"] if "_orig_mod" in name]


def test_bf16_is_chosen_only_where_it_is_native(monkeypatch):
    cpu = torch.device("cpu")
    for bf16, amx, expected in ((True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda bf16=bf16: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        assert command.choose_precision("auto", cpu) == expected
    assert command.choose_precision("bf16", cpu) == "bf16" and command.choose_precision("fp32", cpu) == "fp32"


def test_file_that_outgrows_the_disk(call, tmp_path):
    """A limit on the size of files, as a full disk has it: in the midst of writing a checkpoint."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    options = ["--model", "cnn2", *DIGITS, "--out-dir", "."]
    assert call(train.main, *options, "--epochs", 2, "--run-name", "whole")[0] == 0
    assert call(train.main, *options, "--epochs", 1)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "cnn2").glob("*.pt")}
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, former[1]))
    try:
        code, _, err = call(train.main, *options, "--epochs", 2, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert code == 2 and "cnn2/best.pt: File too large" in err and len(err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "cnn2").glob("*.pt")} == before
    assert not list(tmp_path.rglob("*.tmp"))
    assert call(train.main, *options, "--epochs", 2, "--resume")[0] == 0
    assert_same_weights(tmp_path / "whole/last.pt", tmp_path / "cnn2/last.pt")


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """The run folder of two uninterrupted epochs, as `quick` trains them."""
    folder = tmp_path_factory.mktemp("two_epochs")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        train.main(["--model", "cnn1", *DIGITS, "--epochs", "2", "--out-dir", str(folder)])
    return folder / "cnn1"


@pytest.mark.parametrize(
    ("place", "name", "calls"),
    [
        ("a step", "train.train_step", 50),
        ("a save", "runs.os.fsync", 4),
        ("a rename", "runs.os.replace", 5),
        ("the final evaluation", "evaluate.split_metrics", 2),
        pytest.param("the last picture", "plots.draw_metric_table", 3, marks=pytest.mark.pictures),
    ],
)
def test_interrupt_at_any_place_is_resumed(call, two_epochs, tmp_path, monkeypatch, place, name, calls):
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
    assert not list((tmp_path / "data").iterdir())
