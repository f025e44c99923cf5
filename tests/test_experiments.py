import collections
import dataclasses
import importlib
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import command
import corruptions
import data
import evaluate
import models
import runs
import train
from conftest import ROOT, interrupted
from experiments import (
    NOISE,
    ablation,
    common,
    curves,
    dataset_example,
    learning_rates,
    precision,
    seeds,
    softmax_twice,
    vgg_apart,
)
from metrics import mean_loss_and_accuracy

DIGITS = ["--dataset", "digits", "--folder", "folder"]


def test_softmax_twice_trains_on_probabilities_and_is_evaluated_as_plain_cnn2(call, tmp_path, few_digits):
    code, out, err = call(softmax_twice.main, *DIGITS, "--epochs", "1")
    assert code == 0, err
    first = runs.read_history("folder")
    floor = math.log(1 + 9 / math.e)  # a perfect prediction's loss
    assert all(floor < loss < math.log(10) for loss in (first["train_loss"][0], first["validation_loss"][0]))
    model, checkpoint = models.load_model("folder/best.pt")
    assert type(model) is models.CNN2
    device = command.choose_device("auto")  # as in training
    test = evaluate.infer(model.to(device), data.load_splits("digits", "", ["test"])["test"].to(device))
    metrics = json.loads((tmp_path / "folder/metrics.json").read_text())
    (row,) = runs.read_rows("folder/true_loss.csv")
    assert float(row["validation_loss"]) == pytest.approx(metrics["validation"]["loss"], abs=1e-6)
    assert metrics["test"]["loss"] == pytest.approx(mean_loss_and_accuracy(test)[0], abs=1e-6)
    assert np.array_equal(runs.read_arrays("folder/predictions_test.npz", "probabilities")[0], test.probabilities())


def test_stopped_experiment_is_resumed(call, monkeypatch, few_digits):
    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "print_epoch", interrupted)
        assert call(softmax_twice.main, *DIGITS, "--epochs", "2")[0] == 130
    code, out, err = call(softmax_twice.main, *DIGITS, "--epochs", "2")
    assert code == 0 and "epoch 2/2" in out and "epoch 1/2" not in out, err
    code, out, err = call(softmax_twice.main, *DIGITS, "--epochs", "3")
    assert code == 2 and "another recipe" in err and len(err.splitlines()) == 1


def test_curves_match_the_histories(call, tmp_path, few_digits):
    options = ["--dataset", "digits", "--epochs", "2", "--out-dir", "."]
    for model in ("dense", "cnn1"):
        assert call(train.main, "--model", model, *options)[0] == 0
    assert call(evaluate.main, "dense/best.pt", "cnn1/best.pt")[0] == 0
    assert call(softmax_twice.main, "--dataset", "digits", "--folder", "twice", "--epochs", "2")[0] == 0
    code, out, err = call(curves.main, "--folder", ".", "--twice", "twice")
    assert code == 0, err
    losses = {}
    for row in runs.read_rows("curves.csv"):
        losses.setdefault(row["curve"], []).append(float(row["validation_loss"]))
    for curve, folder in (("dense", "dense"), ("cnn1", "cnn1"), ("softmax twice, its own loss", "twice")):
        assert losses[curve] == runs.read_history(folder)["validation_loss"].tolist()
    true = [float(row["validation_loss"]) for row in runs.read_rows("twice/true_loss.csv")]
    assert losses["softmax twice, true cross-entropy"] == true and true != losses["softmax twice, its own loss"]
    assert (tmp_path / "curves.png").exists()


def test_each_ablation_variant_leaves_out_what_its_name_says():
    settings = dataclasses.asdict(ablation.IMPROVED)
    changed = {
        name: {setting for setting, value in dataclasses.asdict(variant.recipe).items() if value != settings[setting]}
        for name, variant in ablation.VARIANTS.items()
        if variant.baseline or name == "all_parts"
    }
    assert {name: changes for name, changes in changed.items() if changes} == {
        "without_augmentation": {"augment"},
        "without_label_smoothing": {"label_smoothing"},
        "without_skipping_easy_images": {"skip_easy"},
        "constant_learning_rate": {"schedule", "learning_rate"},
        "adamw_instead_of_muon": {"optimizer", "learning_rate"},
    }
    for name, variant in ablation.VARIANTS.items():
        if name not in changed:  # a variant with another learning rate
            other = ablation.VARIANTS[name.rpartition("_")[0]].recipe
            assert variant.recipe == dataclasses.replace(other, learning_rate=float(name.rpartition("_")[2])) != other
    networks = {name: (variant.name, variant.network) for name, variant in ablation.VARIANTS.items()}
    assert {name: network for name, network in networks.items() if network != ("vgg_fast", None)} == {
        "vgg_by_this_recipe": ("vgg", None),
        "without_whitening": ("vgg_fast", ablation.WithoutWhitening),
        "without_identity_initialisation": ("vgg_fast", ablation.WithoutIdentities),
    }
    whitened, trained = models.build("vgg_fast"), models.build(ablation.WithoutWhitening)
    assert trained.layers[0].weight.requires_grad and not whitened.layers[0].weight.requires_grad
    kernel = models.build(ablation.WithoutIdentities).layers[2].weight[0, 0]
    assert kernel[1, 1] != 1 and models.build("vgg_fast").layers[2].weight[0, 0, 1, 1] == 1


def test_effects_are_differences_of_means_with_t_intervals():
    values = {"all": [0.90, 0.91, 0.92], "less": [0.88, 0.90, 0.89], "same": [0.91, 0.90, 0.92]}
    pairs = [("all", None), ("less", "all"), ("same", "all"), ("missing", "less")]
    less, same = common.effects(values, pairs)
    assert less["difference"] == pytest.approx(-0.02) and less["baseline"] == same["baseline"] == "all"
    assert same["difference"] == pytest.approx(0) and same["low"] < 0 < same["high"]
    # Each variant has a standard deviation of 0.01, so the pooled one is 0.01 too, with 6 degrees of freedom.
    margin = 2.4469 * 0.01 * math.sqrt(2 / 3)
    assert [less["low"], less["high"]] == pytest.approx([-0.02 - margin, -0.02 + margin], abs=1e-6)
    assert common.effects({"less": values["less"]}, pairs) == [], "the baseline is missing"
    assert common.effects({row: each[:1] for row, each in values.items()}, pairs) == [], "one seed has no spread"


def test_last_step_from_cnn2_is_vgg():
    networks = []
    for network in ("vgg", vgg_apart.Step):
        torch.manual_seed(0)
        networks.append(models.build(network).eval())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(networks[0](images), networks[1](images))
    sizes = [models.multiply_adds(models.build(row.network or row.name)) for row in vgg_apart.VARIANTS.values()]
    assert sizes == sorted(sizes)


def test_variants_use_their_precision_and_learning_rate(call, few_digits):
    for experiment, row in ((precision, "fp32"), (precision, "bf16"), (learning_rates, "dense_1e-3")):
        assert call(experiment.main, row, *DIGITS, "--epochs", "1", "--seeds", "1")[0] == 0
    saved = {row: runs.load_checkpoint(f"folder/{row}/0/last.pt") for row in ("fp32", "bf16", "dense_1e-3")}
    assert [saved[row].environment["precision"] for row in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert saved["dense_1e-3"].recipe.learning_rate == 1e-3 and saved["dense_1e-3"].model == "dense"
    assert [row["variant"] for row in runs.read_rows("folder/runs.csv")] == ["dense_1e-3"]
    assert saved["fp32"].history[0]["train_loss"] != saved["bf16"].history[0]["train_loss"]


def leave_out_variants(monkeypatch, *kept):
    """Shorten the ablation, since counting the operations of twenty networks takes seconds."""
    monkeypatch.setattr(ablation, "VARIANTS", {name: row for name, row in ablation.VARIANTS.items() if name in kept})


def test_ablation_trains_variants_without_the_test_split(call, tmp_path, monkeypatch):
    def load(dataset, data_dir, names, **options):
        assert "test" not in names
        return load_splits(dataset, data_dir, names, **options)

    splits = {name: data.Split(*(part[:64] for part in split)) for name, split in data.split_digits(0).items()}
    monkeypatch.setattr(data, "split_digits", lambda split_seed: splits)
    load_splits = data.load_splits
    monkeypatch.setattr(data, "load_splits", load)
    leave_out_variants(monkeypatch, "all_parts", "without_whitening", "without_augmentation")
    options = ["without_augmentation", "without_whitening", *DIGITS, "--epochs", "1", "--seeds", "2"]
    code, out, err = call(ablation.main, *options)
    assert code == 0 and out.count("epoch 1/1") == 4, err
    assert {path.name for path in (tmp_path / "folder/without_augmentation/1").iterdir()} == {
        *(".lock", "best.pt", "last.pt", "history.csv", "noise.csv", "loss_plot.png")
    }
    rows = runs.read_rows(tmp_path / "folder/runs.csv")
    assert [(row["variant"], row["seed"]) for row in rows] == [
        (row, seed) for row in ("without_whitening", "without_augmentation") for seed in "01"
    ]
    best = runs.read_history(tmp_path / "folder/without_augmentation/1")["validation_accuracy"].max()
    assert float(rows[-1]["validation_accuracy"]) == best
    split = load_splits("digits", "", ["validation"])["validation"]
    model, _ = models.load_model(tmp_path / "folder/without_augmentation/1/best.pt")
    noisy = evaluate.infer(model, data.Split(corruptions.noisy(split.images, 10), split.labels))
    assert float(rows[-1]["with_noise"]) == pytest.approx(mean_loss_and_accuracy(noisy)[1])
    assert call(ablation.main, *options)[1] == "", "nothing is trained twice"
    assert call(ablation.main, "typo", *DIGITS)[0] == 2
    code, out, err = call(ablation.main, "all_parts", *DIGITS, "--epochs", "2")
    assert code == 2 and "holds a run of 1 epochs" in err and "epoch" not in out, "runs of other lengths aren't mixed"


def test_variants_without_a_comparison_get_one_seed(call, tmp_path, monkeypatch):
    def train_it(place, *arguments):
        place.mkdir(parents=True, exist_ok=True)
        runs.write_atomically(place / runs.HISTORY, runs.csv_bytes([dict.fromkeys(runs.HISTORY_COLUMNS, 1)]))

    def write_noise_accuracy(place, *arguments):
        runs.write_atomically(place / NOISE, runs.csv_bytes([{"noise": 10, "validation_accuracy": 0.5}]))

    leave_out_variants(monkeypatch, "all_parts", "adamw_instead_of_muon", "adamw_instead_of_muon_2e-3")
    monkeypatch.setattr(common, "train_or_resume", train_it)
    monkeypatch.setattr(common, "write_noise_accuracy", write_noise_accuracy)
    assert call(ablation.main, *DIGITS, "--epochs", "1", "--seeds", "2")[0] == 0
    counted = collections.Counter(row["variant"] for row in runs.read_rows("folder/runs.csv"))
    assert counted["all_parts"] == counted["adamw_instead_of_muon"] == 2
    assert counted["adamw_instead_of_muon_2e-3"] == 1
    assert call(ablation.main, "adamw_instead_of_muon_2e-3", *DIGITS, "--epochs", "1", "--seeds", "2")[0] == 0
    assert (tmp_path / "folder/adamw_instead_of_muon_2e-3/1/noise.csv").exists()


def test_example_picture_shows_the_first_images_of_every_class(call, tmp_path):
    assert call(dataset_example.main, "--dataset", "digits")[0] == 0
    folder = tmp_path / "outs/digits/exercise_04"  # away from the results on CIFAR-10
    split = data.load_splits("digits", "", ["train"])["train"]
    with np.load(folder / "plot_dataset_example.npz") as saved:
        assert saved["classes"].tolist() == data.CLASSES["digits"] and saved["images"].shape == (10, 10, 3, 32, 32)
        assert np.array_equal(saved["images"][3, 0], split.images[split.labels == 3][0])
    assert (folder / "plot_dataset_example.png").exists()
    assert [path.name for path in (tmp_path / "outs").iterdir()] == ["digits"]


@pytest.mark.parametrize("name", ["ablation", "curves", "seeds", "softmax_twice", "tables", "throughput"])
def test_help_of_an_experiment(call, name):
    code, out, err = call(importlib.import_module(f"experiments.{name}").main, "--help")
    assert code == 0 and out.startswith("usage") and err == ""


def test_seeds_are_trained_once_and_summarised_with_the_committed_run(call, tmp_path, few_digits, monkeypatch):
    monkeypatch.setattr(seeds, "VARIANTS", {"dense": seeds.VARIANTS["dense"]})
    monkeypatch.setattr(seeds, "COMMITTED", {"dense": tmp_path / "committed"})
    options = ["--model", "dense", "--dataset", "digits", "--epochs", "1", "--out-dir", ".", "--run-name", "committed"]
    assert call(train.main, *options)[0] == 0
    code, out, err = call(seeds.main, *DIGITS, "--seeds", "3", "--epochs", "1")
    assert code == 0 and out.count("epoch 1/1") == 2, err
    rows = runs.read_rows("folder/seeds.csv")
    assert [(row["run"], row["seed"]) for row in rows] == [("dense", "0"), ("dense", "1"), ("dense", "2")]
    others = ("folder/dense/1", "folder/dense/2")
    for row, folder in zip(rows, ("committed", *others)):
        metrics = runs.read_metrics(folder)
        assert float(row["test_accuracy"]) == metrics["test"]["accuracy"]
        assert int(row["seed"]) == metrics["settings"]["seed"] and row["precision"] == metrics["precision"]
    assert len({runs.read_metrics(folder)["train"]["loss"] for folder in ("committed", *others)}) == 3
    # With one epoch, the best is also the last.
    assert rows[0]["last_test_accuracy"] == ""
    assert all(float(row["last_test_accuracy"]) == pytest.approx(float(row["test_accuracy"])) for row in rows[1:])
    assert (tmp_path / "folder/seeds.png").exists()
    shutil.copytree("folder/dense/1", "folder/dense/1.old")  # not a seed
    shutil.copytree("committed", "folder/dense/0")  # a second seed 0
    code, out, err = call(seeds.main, *DIGITS, "--seeds", "3", "--epochs", "1")
    assert code == 0 and "epoch" not in out and len(runs.read_rows("folder/seeds.csv")) == 3
    code, out, err = call(seeds.main, *DIGITS, "--seeds", "2", "--epochs", "2")
    assert code == 2 and "holds a run with another recipe" in err and "epoch 1" not in out
    # Here the committed run has another recipe.
    options = ["--dataset", "digits", "--folder", "longer", "--seeds", "1", "--epochs", "2"]
    assert call(seeds.main, *options)[0] == 0
    assert [row["seed"] for row in runs.read_rows("longer/seeds.csv")] == ["0"]
    assert runs.read_metrics("longer/dense/0")["settings"]["epochs"] == 2


@pytest.mark.slow
def test_processes_share_the_runs_and_one_that_dies_leaves_its_run_to_the_others(tmp_path):
    """Three at once; one is killed while it trains, so that another has to finish its run."""
    words = ["-m", "experiments.precision", *DIGITS, "--epochs", "3", "--seeds", "2", "--data-dir", "nowhere"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([sys.executable, *words], cwd=tmp_path, env=environment, **pipes) for _ in range(3)]
    victim, *others = processes
    for line in victim.stdout:
        if line.startswith("epoch"):
            break
    victim.kill()
    outputs = [process.communicate()[0] for process in others]
    victim.communicate()
    assert [process.returncode for process in others] == [0, 0], outputs
    rows = runs.read_rows(tmp_path / "folder/runs.csv")
    assert {(row["variant"], row["seed"]) for row in rows} == {(run, seed) for run in ("bf16", "fp32") for seed in "01"}
    assert sum(output.count("epoch 3/3") for output in outputs) + line.startswith("epoch 3/3") == 4, "none twice"
