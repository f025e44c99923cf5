import dataclasses
import json
import math
import re
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import corruptions
import data
import evaluate
import models
import runs
from conftest import ROOT, interrupted


@pytest.fixture
def folder(finished_run):
    """The run folder of cnn2, after the README's command. Not to be changed."""
    return finished_run("cnn2")[0]


@pytest.fixture
def place(finished_run, tmp_path):
    """place(folder, ...): create these folders, each with nothing but the best.pt of `dense`; returns its paths."""

    def copy(*folders):
        for folder in folders:
            (tmp_path / folder).mkdir(parents=True)
            shutil.copy(finished_run("dense")[0] / "best.pt", tmp_path / folder)
        return [f"{folder}/best.pt" for folder in folders]

    return copy


def test_random_predictions_are_saved_and_drawn(folder):
    shown, saved = np.load(folder / "random_predictions.npz"), np.load(folder / "predictions_test.npz")
    index = shown["index"]
    assert len(set(index)) == 25 and np.array_equal(shown["labels"], saved["labels"][index])
    true = saved["probabilities"][index, shown["labels"]]
    certain = true > 0.01  # smaller ones lose too many digits by rounding
    assert np.allclose(shown["losses"][certain], -np.log(true[certain]), atol=0.006)
    assert (folder / "random_predictions.png").exists()


def test_mistakes_are_the_most_confident_wrong_predictions(folder):
    mistakes, saved = np.load(folder / "mistakes.npz"), np.load(folder / "predictions_test.npz")
    probabilities, labels, index = saved["probabilities"], saved["labels"], mistakes["index"]
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    assert 0 < len(index) == min(25, len(wrong))
    confidences = probabilities.max(axis=1)
    assert confidences[index].tolist() == sorted(confidences[wrong], reverse=True)[:25]
    assert set(index) <= set(wrong)
    assert np.array_equal(mistakes["labels"], labels[index])
    assert np.array_equal(mistakes["probabilities"], probabilities[index])
    assert np.array_equal(mistakes["images"], data.load_splits("digits", "", ["test"])["test"].images[index])
    assert (folder / "mistakes.png").exists()


def test_inside_shows_the_first_right_and_wrong_predictions(folder):
    inside, saved = np.load(folder / "inside.npz"), np.load(folder / "predictions_test.npz")
    index, labels = inside["index"], saved["labels"]
    right = saved["probabilities"].argmax(axis=1) == labels
    assert index.tolist() == [*np.flatnonzero(right)[:3], *np.flatnonzero(~right)[:3]]
    assert np.allclose(inside["probabilities"], saved["probabilities"][index], atol=1e-4)
    assert inside["block_1"].shape == (6, 4, 16, 16) and inside["block_2"].shape == (6, 4, 8, 8)
    images = data.load_splits("digits", "", ["test"])["test"].images[index]
    assert np.array_equal(inside["images"], images)
    model, _ = models.load_model(folder / "best.pt")
    images[:, :, 8:16, 4:12] = 127
    with torch.no_grad():
        covered = model(images)[torch.arange(6), labels[index]].numpy()
    assert np.allclose(inside["occlusion"][:, 2, 1], saved["probabilities"][index, labels[index]] - covered, atol=1e-4)
    assert (folder / "inside.png").exists()


def test_filters_are_the_kernels_of_the_first_convolution(folder):
    weights = runs.load_checkpoint(folder / "best.pt").weights["layers.0.weight"]
    saved = np.load(folder / "filters.npz")
    assert np.array_equal(saved["weights"], weights)
    torch.manual_seed(0)
    assert np.array_equal(saved["start"], models.build("cnn2").layers[0].weight.detach()), "the seed's initial weights"
    assert (folder / "filters.png").exists()


def test_metrics_record_how_the_run_was_made(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    history = runs.read_rows(folder / "history.csv")
    best = max(history, key=lambda row: (float(row["validation_accuracy"]), -float(row["validation_loss"])))
    assert metrics["best_epoch"] == int(best["epoch"])
    assert metrics["validation"]["accuracy"] == pytest.approx(float(best["validation_accuracy"]), abs=1e-6)
    assert metrics["validation"]["loss"] == pytest.approx(float(best["validation_loss"]), abs=1e-6)
    assert metrics["model"] == "cnn2" and metrics["dataset"] == "digits" and metrics["parameters"] == 545_098
    assert metrics["settings"]["learning_rate"] == 1e-4 and metrics["seeds"] == {"training": 0, "split": 0}
    assert {"torch_version", "device", "precision", "threads", "seconds"} <= metrics.keys()
    for split, samples in (("train", 1347), ("validation", 150), ("test", 300)):
        assert metrics[split]["samples"] == samples
    assert metrics["train"]["accuracy"] > 0.95
    # Further decimals than six would differ from one processor to the next.
    numbers = re.findall(r"\d+\.\d+", json.dumps([metrics[split] for split in runs.SPLITS]))
    assert len(numbers) > 100 and max(map(len, numbers)) == len("0.123456")
    with np.load(folder / "predictions_test.npz") as saved:
        assert np.array_equal(saved["probabilities"], saved["probabilities"].round(6))


@pytest.mark.pictures
def test_best_alone_gives_the_same_tables_and_files_as_training(finished_run, call, tmp_path):
    finished, output = finished_run("cnn2")
    (tmp_path / "cnn2").mkdir()
    shutil.copy(finished / "best.pt", tmp_path / "cnn2")
    code, out, err = call(evaluate.main, "cnn2", "--data-dir", "nowhere")
    assert code == 0 and err == ""
    of_training = {"last.pt", "history.csv", "loss_plot.png"}
    expected = {path.name: path.read_bytes() for path in finished.iterdir() if path.name not in of_training}
    assert {path.name: path.read_bytes() for path in (tmp_path / "cnn2").iterdir()} == expected
    tables = out[out.index("\ntrain\n") : out.index("Tables and pictures")]
    assert tables in output, "those that training printed at its end"
    assert "F1" in tables and "macro average" in tables and "95% interval" in tables


def test_validation_loss_during_training_matches_that_of_evaluation(finished_run):
    folder, _ = finished_run("vgg")  # one epoch, with dropout and batch normalisation
    (row,) = runs.read_rows(folder / "history.csv")
    assert runs.read_metrics(folder)["validation"]["loss"] == pytest.approx(float(row["validation_loss"]), abs=1e-5)


def test_evaluating_last_keeps_the_results_of_best(folder, call, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    assert call(evaluate.main, "run/last.pt")[0] == 0
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before
    assert json.loads((tmp_path / "run" / "last_results" / "metrics.json").read_text())["best_epoch"] == 10


def test_several_checkpoints_are_compared(finished_run, call, tmp_path):
    for model in ("dense", "cnn2"):
        shutil.copytree(finished_run(model)[0], tmp_path / "outs" / "exercise_04" / model)
    code, out, err = call(evaluate.main)  # none given: all of them
    assert code == 0 and err == ""
    folder = tmp_path / "outs" / "exercise_04"
    rows = {row["model"]: row for row in runs.read_rows(folder / "comparison.csv")}
    for model in ("dense", "cnn2"):
        metrics = json.loads((folder / model / "metrics.json").read_text())
        assert float(rows[model]["test_accuracy"]) == metrics["test"]["accuracy"]
        assert float(rows[model]["test_f1"]) == metrics["test"]["macro"]["f1"]
        assert int(rows[model]["parameters"]) == metrics["parameters"]
        line = next(line for line in (folder / "comparison.md").read_text().splitlines() if f"| {model} |" in line)
        assert f" {metrics['test']['accuracy']:.2%} " in line and f" {metrics['parameters']:,} " in line
        assert int(rows[model]["multiply_adds"]) == models.multiply_adds(models.build(model))
    assert all((folder / f"{name}.png").exists() for name in ("comparison", "calibrations", "recall"))
    first, second = list(rows)
    right = {}
    for model in rows:
        saved = np.load(folder / model / "predictions_test.npz")
        right[model] = saved["probabilities"].argmax(axis=1) == saved["labels"]
    only_second, only_first = (right[second] > right[first]).sum(), (right[first] > right[second]).sum()
    row = rows[second]
    assert row["compared_with"] == first and rows[first]["difference"] == ""
    assert int(row["only_this_right"]) == only_second and int(row["only_that_right"]) == only_first
    differences = right[second].astype(float) - right[first]
    margin = 1.96 * differences.std() / math.sqrt(len(differences))
    low, middle, high = (float(row[f"difference{end}"]) for end in ("_low", "", "_high"))
    assert [low, middle, high] == pytest.approx(differences.mean() + np.array([-margin, 0, margin]), rel=1e-3)


def test_runs_with_the_same_name_are_told_apart(place, call, tmp_path):
    first, second = place("a/run", "b/run")
    code, out, err = call(evaluate.main, first, second, first)
    assert code == 0 and err == ""
    assert sorted(row["model"] for row in runs.read_rows(tmp_path / "a" / "comparison.csv")) == ["a/run", "b/run"]


def test_robustness_is_measured_from_the_checkpoints(finished_run, call, tmp_path, monkeypatch):
    noisy = Mock(wraps=corruptions.noisy)
    monkeypatch.setattr(corruptions, "noisy", noisy)
    for model in ("dense", "cnn2"):
        (tmp_path / model).mkdir()
        shutil.copy(finished_run(model)[0] / "best.pt", tmp_path / model)
    code, out, err = call(evaluate.main, "--robustness", "dense/best.pt", "cnn2/best.pt")
    assert code == 0 and err == ""
    accuracy = {}
    for row in runs.read_rows(tmp_path / "robustness.csv"):
        accuracy[row["model"], row["transformation"], float(row["amount"])] = float(row["test_accuracy"])
    assert len(accuracy) == 2 * (5 + 6 + 6 + 3 * 4) and (tmp_path / "robustness.png").exists()
    assert noisy.call_count == len(corruptions.CORRUPTIONS["noise"].amounts), "once for all networks"
    images, labels = data.load_splits("digits", "", ["test"])["test"]
    for model in ("dense", "cnn2"):
        metrics = json.loads((finished_run(model)[0] / "metrics.json").read_text())
        network = models.load_model(tmp_path / model / "best.pt")[0]
        assert accuracy[model, "shift", 0] == accuracy[model, "rotation", 0]
        assert accuracy[model, "shift", 0] == pytest.approx(metrics["test"]["accuracy"], abs=1e-6)
        assert accuracy[model, "shift", 8] < 0.8 and accuracy[model, "rotation", 90] < 0.8, "a 6 is not a 9"
        moved = [
            np.roll(np.pad(images, [(0, 0), (0, 0), (9, 9), (9, 9)], "reflect"), by, (2, 3))
            for by in ((4, 0), (-4, 0), (0, 4), (0, -4))
        ]
        right = [(network(torch.tensor(one[:, :, 9:-9, 9:-9])).argmax(dim=1) == labels).float().mean() for one in moved]
        assert accuracy[model, "shift", 4] == pytest.approx(np.mean(right), abs=1e-6)
        assert f"{accuracy[model, 'rotation', 90]:.1%}" in out


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ([], ("comparison.csv", "comparison.md", "comparison.png", "calibrations.csv", "recall.csv", "recall.png")),
        (["--robustness"], ("robustness.csv", "robustness.png", "robustness_examples.png")),
    ],
)
def test_results_of_several_runs_are_not_replaced_by_those_of_fewer(place, call, tmp_path, monkeypatch, options, names):
    def models_in(path):
        return {row["model"] for row in runs.read_rows(path)}

    monkeypatch.setattr(corruptions, "CORRUPTIONS", {"shift": corruptions.CORRUPTIONS["shift"]})
    first, second, third = place("first", "second", "third")
    assert call(evaluate.main, first, second, third, *options)[0] == 0
    before = [(tmp_path / name).read_bytes() for name in names]
    code, out, err = call(evaluate.main, first, second, *options)
    assert code == 0 and f"Not written: {tmp_path / names[0]} also covers third" in out and "--out-dir" in out
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert call(evaluate.main, first, second, *options, "--out-dir", "some")[0] == 0
    assert models_in(tmp_path / "some" / names[0]) == {"first", "second"}
    (tmp_path / "third").rename(tmp_path / "renamed")  # a run that is gone doesn't count
    assert "Not written" not in call(evaluate.main, first, second, "renamed/best.pt", *options)[1]
    assert models_in(tmp_path / names[0]) == {"first", "second", "renamed"}


def test_unusable_folders_are_rejected_before_any_work(place, call, tmp_path):
    first, second = place("first", "second")
    (tmp_path / "file").touch()
    shutil.copy(first, "kept.pt")
    (tmp_path / "kept_results").touch()
    for options, reason in (
        ([first, second, "--out-dir", "file/folder"], "file/folder can't be written"),
        ([first, "--robustness", "--out-dir", "file/folder"], "file/folder can't be written"),
        (["kept.pt"], "kept_results"),
        ([first, "--out-dir", "elsewhere"], "--out-dir"),
    ):
        code, out, err = call(evaluate.main, *options)
        assert code == 2 and reason in err and len(err.splitlines()) == 1 and not out
    assert not (tmp_path / "elsewhere").exists() and not (tmp_path / "first/metrics.json").exists()


def test_interrupted_measurement_keeps_the_old_results(place, call, tmp_path, monkeypatch):
    (path,) = place("run")
    (tmp_path / "robustness.csv").write_text("old")
    monkeypatch.setattr(corruptions, "rotated", interrupted)
    assert call(evaluate.main, "--robustness", path)[0] == 130
    assert (tmp_path / "robustness.csv").read_text() == "old"


def test_a_folder_in_use_is_rejected_before_another_is_evaluated(place, call, tmp_path):
    paths = place("first", "second")
    with runs.claim_folder(tmp_path / "second"):
        code, out, err = call(evaluate.main, *paths)
    assert code == 2 and out == "" and f"another process is writing to {tmp_path / 'second'}" in err


def test_two_checkpoints_never_share_a_results_folder(folder, call, tmp_path):
    for name in ("m.pt", "m.ckpt"):
        shutil.copy(folder / "best.pt", tmp_path / name)
    code, out, err = call(evaluate.main, "m.pt", "m.ckpt")
    assert code == 2 and "same folder" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "m_results").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing.pt"], "missing.pt: No such file or directory"),
        (["text.pt"], "not a checkpoint"),
        (["."], "best.pt: No such file"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "abacus"], "--device abacus"),
        (["--surprise"], "--surprise"),
        (["circle.pt"], "circle.pt"),
    ],
)
def test_a_user_error_is_reported_in_one_line(call, tmp_path, arguments, reason):
    (tmp_path / "text.pt").write_text("text" * 100)
    (tmp_path / "circle.pt").symlink_to(tmp_path / "circle.pt")
    code, out, err = call(evaluate.main, *arguments)
    assert code == 2 and out == ""
    assert reason in err and len(err.splitlines()) == 1 and "Traceback" not in err


def test_checkpoints_of_unknown_or_different_data_sets_are_rejected(folder, call, tmp_path):
    for dataset, others, reason in (("mnist", [], "'mnist'"), ("cifar10", [folder], "different data sets")):
        foreign = dataclasses.replace(runs.load_checkpoint(folder / "best.pt"), dataset=dataset)
        runs.save_checkpoint(tmp_path / "best.pt", foreign)
        code, out, err = call(evaluate.main, "best.pt", *others)
        assert code == 2 and out == "" and reason in err and len(err.splitlines()) == 1
        assert not (tmp_path / "data").exists()


def test_leftovers_of_a_killed_evaluation_are_removed(place, call, tmp_path):
    (path,) = place("run")
    (tmp_path / "run/.metrics.json.tmp").write_text("half")
    assert call(evaluate.main, path)[0] == 0
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_a_run_with_an_unknown_network_is_reported_and_skipped(place, call, tmp_path):
    """It may be from another branch."""
    *_, foreign = place(*(f"outs/exercise_04/{name}" for name in ("first", "second", "foreign")))
    runs.save_checkpoint(foreign, dataclasses.replace(runs.load_checkpoint(foreign), model="resnet"))
    code, out, err = call(evaluate.main)
    assert code == 2 and "resnet" in err and "skipped" in err and len(err.splitlines()) == 1
    rows = runs.read_rows(tmp_path / "outs/exercise_04/comparison.csv")
    assert {row["model"] for row in rows} == {"first", "second"}
    assert call(evaluate.main, foreign)[0] == 2, "given by name, it is an error"


def test_from_another_folder_the_message_says_where_it_looked(call, tmp_path):
    code, out, err = call(evaluate.main)
    assert code == 2 and "no checkpoint given" in err and len(err.splitlines()) == 1
    assert str(tmp_path / "outs") in err and str(ROOT) in err
