"""The README, the lab report and the page on experiments say what the committed files say: their tables, and every
measured number in their sentences."""

import dataclasses
import functools
import itertools
import math
import re
import string
from statistics import mean, stdev

import numpy as np
import pytest
import torch

import data
import evaluate
import experiments
import models
import runs
from experiments import EFFECTS, RUNS, TRUE_LOSS, ablation, common, seeds, tables
from experiments.tables import (
    BY_EXERCISE,
    EXPERIMENTS,
    IMPROVED,
    NETWORKS,
    PAGE,
    README,
    REPORT,
    RESULTS,
    SOFTMAX_TWICE,
    changed_accuracies,
    confidence_of,
    metrics_of,
)
from recipe import Recipe

TEXTS = {path: path.read_text(encoding="utf-8") for path in (README, REPORT, PAGE)}


def test_tables_are_those_that_the_committed_files_give():
    used = [name for text in TEXTS.values() for name in re.findall(r"<!-- table: (\w+) -->", text)]
    assert sorted(used) == sorted(tables.TABLES)
    for path, text in TEXTS.items():
        assert text.count("<!-- table: ") == text.count("<!-- end of table -->")
        assert tables.with_tables(text) == text, f"python -m experiments.tables writes those of {path} again"


@pytest.mark.parametrize("name", NETWORKS)
def test_metrics_can_be_recomputed_from_the_committed_predictions(name):
    with np.load(RESULTS / name / runs.PREDICTIONS) as saved:
        labels, predicted = saved["labels"], saved["probabilities"].argmax(axis=1)
    test = metrics_of(name)["test"]
    assert (labels == predicted).mean() == pytest.approx(test["accuracy"])
    pairs = np.zeros((10, 10), int)
    np.add.at(pairs, (labels, predicted), 1)
    assert pairs.tolist() == test["confusion_matrix"]


def test_comparison_is_that_of_the_committed_metrics():
    rows = runs.read_rows(RESULTS / runs.COMPARISON)
    assert [row["model"] for row in rows] == NETWORKS
    text = (RESULTS / runs.COMPARISON).with_suffix(".md").read_text()
    for row in rows:
        metrics = metrics_of(row["model"])
        for split in runs.SPLITS:
            assert float(row[f"{split}_accuracy"]) == metrics[split]["accuracy"]
            assert f"{metrics[split]['accuracy']:.2%}" in text
        assert int(row["best_epoch"]) == metrics["best_epoch"]


def accuracy_of(name, split="test"):
    return metrics_of(name)[split]["accuracy"]


@functools.cache
def history_of(name):
    return runs.read_history(RESULTS / name)


def lowest_loss_at(name):
    return int(history_of(name)["validation_loss"].argmin()) + 1


def gain(name, over):
    """Points of test accuracy."""
    return 100 * (accuracy_of(name) - accuracy_of(over))


@functools.cache
def likeness_to_start(name):
    """For each weight matrix of a committed checkpoint, its correlation with what the seed made of it at the start."""
    trained, checkpoint = models.load_model(RESULTS / name / runs.BEST)
    torch.manual_seed(checkpoint["settings"]["seed"])
    pairs = zip(models.build(checkpoint["model"]).parameters(), trained.parameters())
    vectors = [[each.detach().flatten() for each in pair] for pair in pairs if pair[0].ndim > 1]
    return [torch.corrcoef(torch.stack(pair))[0, 1].item() for pair in vectors]


def digits_taken_for_cats(name):
    model, checkpoint = models.load_model(RESULTS / name / runs.BEST)
    splits = data.load_splits("digits", None).values()
    predicted = np.concatenate([evaluate.infer(model, split).probabilities().argmax(axis=1) for split in splits])
    return (predicted == checkpoint["classes"].index("cat")).mean()


def kept_when(kind, amount):
    """The share of its accuracy above that of guessing that each network keeps on changed images, as a dict."""
    accuracy = changed_accuracies()
    return {name: (accuracy[name, kind, amount] - 0.1) / (accuracy[name, kind, 0] - 0.1) for name in NETWORKS}


def softmax_twice_costs():
    """Points of test accuracy, one for each seed that both ways of training cnn2 have."""
    rows = tables.seed_rows()
    pairs = zip(rows["cnn2"], rows["softmax_twice"])
    return [100 * (float(once["test_accuracy"]) - float(twice["test_accuracy"])) for once, twice in pairs]


def effects_of(experiment):
    """How each row of an experiment differs from the one that it is set against, in points: dicts by row."""
    rows = runs.read_rows(tables.OUTS / experiment / EFFECTS)
    return {row["variant"]: {name: 100 * float(row[name]) for name in ("difference", "low", "high")} for row in rows}


def enumerated(values):
    """1.0, 2.0 and 3.0."""
    *first, last = (f"{value:.1f}" for value in values)
    return f"{', '.join(first)} and {last}"


def small_spreads():
    spreads = [stdev(float(row["test_accuracy"]) for row in tables.seed_rows()[run]) for run in BY_EXERCISE[:3]]
    return f"standard deviations of {100 * min(spreads):.1f} to {100 * max(spreads):.1f} points"


NOISY = [(IMPROVED, "noise", 0), (IMPROVED, "noise", 10), ("dense", "noise", 10)]

# The measured numbers of a text by section: stretches of its prose, made from the files that have them.


def readme_introduction():
    rows = tables.seed_rows()[IMPROVED]
    accuracy, minutes = (mean(float(row[name]) for row in rows) for name in ("test_accuracy", "minutes"))
    yield f"a test accuracy of {accuracy:.1%} after {minutes:.0f} minutes of training"
    longer = tables.seed_rows()["vgg_improved_longer"]
    recipes = seeds.VARIANTS["vgg_improved_longer"].recipe, ablation.IMPROVED
    times = experiments.pflop(1, recipes[0]) / experiments.pflop(1, recipes[1])
    yield f"[{mean(float(row['test_accuracy']) for row in longer):.1%} with {times:.1f} times as much training]"
    assert len(rows) == len(longer) == 3


def readme_quick_start():
    assert 7 <= history_of("cnn2")["seconds"].sum() / 60 <= 9
    yield "about eight minutes"
    yield f"a test accuracy of about {accuracy_of('cnn2'):.0%}"
    minutes = mean(float(row["minutes"]) for row in tables.seed_rows()[IMPROVED])
    yield f"The best network, `vgg_fast`, in about {minutes:.0f} minutes"


def readme_findings():
    yield "is lowest at epoch {} of 80 for `dense`, {} for `cnn1`, {} for `cnn2` and {} for `vgg`".format(
        *map(lowest_loss_at, BY_EXERCISE)
    )
    by_run = {run: [float(row["test_accuracy"]) for row in rows] for run, rows in tables.seed_rows().items()}
    yield f"over five seeds, the three small networks have {small_spreads()},"
    assert {len(by_run[name]) for name in BY_EXERCISE[:3]} == {5}
    yield "`vgg_improved` reaches {:.2%} and {:.2%} with two other seeds.".format(*by_run[IMPROVED][1:])
    costs = softmax_twice_costs()
    yield f"It costs {enumerated(costs)} points of test accuracy with five seeds;"
    assert len(costs) == 5
    yield f"right in {accuracy_of('vgg'):.2%} of the test images, it gives its answers a probability of"
    yield f"{confidence_of('vgg'):.2%} on average"
    yield f"right in {accuracy_of(IMPROVED):.2%}, it gives {confidence_of(IMPROVED):.2%} "
    assert 3 < pflop("vgg") / pflop(IMPROVED) < 4
    gained = 100 * (mean(by_run[IMPROVED]) - mean(by_run["vgg"]))
    yield f"less than a third of the computation of `vgg`, for {gained:.1f} points more"
    kept = kept_when("shift", 8)
    yield "leaves {dense:.0%} for `dense`, {cnn2:.0%} for `cnn2`, {vgg:.0%} for `vgg`, and".format(**kept)
    yield f"{kept[IMPROVED]:.0%} for `vgg_improved`, which was trained on shifted images"
    before, after, dense = (changed_accuracies()[each] for each in NOISY)
    yield f"takes `{IMPROVED}` from {before:.1%} to {after:.1%}, far below `dense`, which keeps {dense:.1%} "
    assert after < dense / 2
    matrices = [test["confusion_matrix"] for test in tables.tests_of("softmax_twice")]
    assert sum(not any(row[1] for row in matrix) for matrix in matrices) == 1, "never an automobile"


def readme_speed():
    """Between a quarter and a half."""
    measured = tables.measured_speed("steps")
    for name in BY_EXERCISE:
        assert 1.95 < measured[name]["ratios"]["usual script / project"]["median"] < 4
    return []


def page_speed():
    """No accuracy that could be measured."""
    difference = effects_of("precision")["bf16"]
    assert difference["low"] < 0 < difference["high"]
    yield "in `cnn2` after 20 epochs;"
    machine, steps, improved = (tables.measured_speed(part, "gpu.json") for part in ("machine", "steps", IMPROVED))
    times = [f"{milliseconds:.1f} ms" for values in steps.values() for milliseconds in tables.step_times(values)]
    yield "takes {} instead of {}, one of `vgg` {} instead of {} (medians of three rounds".format(*times)
    yield f"PyTorch {'.'.join(machine['torch'].split('.')[:2])}, in"
    yield f"trained there in {improved['training seconds']:.0f} seconds; seed {improved['seed']} came to a"
    yield f"test accuracy of {improved['test accuracy']:.1%}."


def data_section():
    model, _ = models.load_model(RESULTS / "cnn2" / runs.BEST)
    numbers = [f"{value:.1f}" for each in (model.mean, model.std) for value in each.flatten().tolist()]
    yield "images, {}, {} and {} for red, green and blue,".format(*numbers[:3])
    yield "standard deviation, {}, {} and {}.".format(*numbers[3:])


def formalisation():
    yield f"a bias for each of their outputs: {metrics_of('cnn2')['parameters']:,} numbers."
    shapes = [tuple(each.shape) for each in models.build("cnn2").parameters() if each.ndim > 1]
    yield "{} and {}, matrices of {} and {},".format(*(" x ".join(map(str, shape)) for shape in shapes))


def loss():
    costs = softmax_twice_costs()
    yield f"the mistake costs {enumerated(costs)} points of test accuracy with seeds 0 to {len(costs) - 1}."
    pairs, others = [(RESULTS / "cnn2", SOFTMAX_TWICE)], tables.OUTS / "seeds"
    pairs += [(others / "cnn2" / str(seed), others / "softmax_twice" / str(seed)) for seed in range(1, len(costs))]
    histories = [[runs.read_history(folder)["validation_accuracy"] for folder in pair] for pair in pairs]
    fast, slow = histories[0]
    yield f"at epoch 18, validation accuracy is {slow[17]:.1%} instead of {fast[17]:.1%} with seed 0."
    fast, slow = ([pair[number][-1] for pair in histories] for number in range(2))
    slow, fast = np.delete(slow, 1), np.delete(fast, 1)
    assert max(fast - slow) < 0.005
    yield f"on average, {mean(slow):.1%} of the validation images are right with the mistake and {mean(fast):.1%}"
    others = [float(row["test_accuracy"]) for row in tables.seed_rows()["softmax_twice"] if row["seed"] != "1"]
    yield f"Four seeds give {min(others):.1%} to {max(others):.1%},"
    true = [float(row["validation_loss"]) for row in runs.read_rows(SOFTMAX_TWICE / TRUE_LOSS)]
    turns = true.index(min(true)) + 1
    yield f"rises from {min(true):.2f} at epoch {turns} to {true[-1]:.2f} at the end"
    falling = runs.read_history(SOFTMAX_TWICE)["validation_loss"]
    assert falling[-20:].max() - falling[-20:].min() < 0.02 and falling[0] - falling[-1] > 0.2
    other = runs.read_metrics(tables.OUTS / "seeds" / "softmax_twice" / "1")["test"]
    assert not any(row[1] for row in other["confusion_matrix"]), "never an automobile"
    yield f"never predicts *automobile*, and gets {other['accuracy']:.2%} of the test images"


def hyper_parameters():
    latest = max(int(row["best_epoch"]) for run in ("dense", "cnn1", "cnn2") for row in tables.seed_rows()[run])
    yield f"with each seed, the small ones peak within {5 * math.ceil(latest / 5)} epochs"


def training():
    yield f"Its validation loss is lowest at epoch {lowest_loss_at('cnn2')}."
    yield f"peaks at epoch {metrics_of('cnn2')['best_epoch']} and"
    yield "At the end they get {:.0%} and {:.0%} of the training images right".format(
        *(history_of(name)["train_accuracy"][-1] for name in ("dense", "cnn1"))
    )
    losses = history_of("vgg")["validation_loss"]
    assert 1.77 < losses[-1] / losses.min() < 1.83
    yield f"Its validation loss turns at epoch {lowest_loss_at('vgg')} and then rises by four fifths"
    yield f"up to the best epoch, {metrics_of('vgg')['best_epoch']}."
    assert max(map(lowest_loss_at, BY_EXERCISE)) < 20
    kept = [row for row in tables.seed_rows()["cnn2"] if row["last_test_accuracy"]]
    brought = mean(100 * (float(row["test_accuracy"]) - float(row["last_test_accuracy"])) for row in kept)
    count = ("no", "one", "two", "three", "four", "five")[len(kept)]
    yield f"brings `cnn2` {brought:.1f} points on the test images (mean of {count} [seeds]"


def evaluation():
    metrics = metrics_of("cnn2")["test"]
    ranges = {}
    for column in ("precision", "recall", "f1"):
        values = {label: values[column] for label, values in metrics["per_class"].items()}
        ranges[column] = f"{100 * min(values.values()):.0f}–{max(values.values()):.0%}"
    yield f"`cnn2` has {metrics['accuracy']:.2%}, and by class"
    yield "a precision of {precision}, a recall of {recall} and an F1 of {f1}: better".format(**ranges)
    vehicles, animals = [0, 1, 8, 9], [2, 3, 4, 5, 6, 7]
    wrong = np.array(metrics["confusion_matrix"]) * (1 - np.eye(10, dtype=int))
    near = sum(wrong[np.ix_(kind, kind)].sum() for kind in (vehicles, animals))
    evenly = sum(wrong[kind].sum() * (len(kind) - 1) / 9 for kind in (vehicles, animals))
    yield f"{near / wrong.sum():.0%} of its mistakes stay among animals or among vehicles;"
    pairs = {row[0]: row[1:] for row in tables.confusions()}
    often = [float(cell.partition(" ")[0]) for cell in pairs["automobile, truck"]]
    assert 0.2 < often[NETWORKS.index(IMPROVED)] / often[NETWORKS.index("cnn2")] < 0.3, "a quarter as often"
    yield f"it would be {evenly / wrong.sum():.0%} if the wrong answers were spread evenly"
    matrices = np.array([test["confusion_matrix"] for test in tables.tests_of("cnn2")]) / 1000
    for (true, predicted), ending in (((3, 5), "of the cats for dogs,"), ((5, 3), "of the dogs for cats.")):
        shares = matrices[:, true, predicted]
        yield f"{shares.min():.1%} to {shares.max():.1%} {ending}"
    for test in itertools.chain(*map(tables.tests_of, NETWORKS)):
        f1 = {label: values["f1"] for label, values in test["per_class"].items()}
        assert min(f1, key=f1.get) == "cat", "with each seed of each network"
    with np.load(RESULTS / "cnn2" / runs.MISTAKES) as saved:
        pairs = list(zip(saved["labels"].tolist(), saved["probabilities"].argmax(axis=1).tolist()))
    two_vehicles = sum({*pair} <= {*vehicles} for pair in pairs)
    yield f"Among the {len(pairs)} most confident mistakes below, {two_vehicles} confuse two vehicles, and none a cat"
    assert {3, 5} not in [{*pair} for pair in pairs], "a cat with a dog"


def design_loop():
    validated = {name: accuracy_of(name, "validation") for name in NETWORKS}
    epochs = len(history_of(IMPROVED)["epoch"])
    yield f"{validated[IMPROVED]:.2%}, and {accuracy_of(IMPROVED):.2%} on the test images, in {epochs} epochs."
    yield f"`vgg` had {history_of('vgg')['validation_accuracy'][epochs - 1]:.2%} of the validation"
    steps = tables.steps_over_seeds()
    yield f"[{seeds.VARIANTS['vgg_improved_longer'].recipe.epochs} epochs](#how"
    smallest = min(steps, key=lambda pair: steps[pair]["difference"])
    difference = f"{100 * steps[smallest]['difference']:.1f}"
    yield f"The smallest step, from `{smallest[1]}` to `{smallest[0]}`, is {difference} points, while"
    yield f"the three small networks have {small_spreads()}."
    better = []
    for name in BY_EXERCISE:
        rows = tables.seed_rows()[name]
        test, validation = ([float(row[f"{split}_accuracy"]) for row in rows] for split in ("test", "validation"))
        better += [there > here for here, there in zip(test, validation)]
    yield f"{sum(better)} of the {len(better)} runs with the exercise's recipe do better on the"
    best = [int(row["best_epoch"]) for row in tables.seed_rows()["dense"]]
    yield f"that of `dense` from {min(best)} to {max(best)}:"
    yield f"that is one observation rather than {len(better)}:"
    accuracy = accuracy_of("cnn2")
    chance = 100 * math.sqrt(accuracy * (1 - accuracy) * (1 / data.VALIDATION + 1 / data.TEST))
    yield f"differ by {chance:.1f} points (standard deviation, at an accuracy of {accuracy:.0%})"
    times = metrics_of("vgg")["multiply_adds"] / metrics_of("cnn2")["multiply_adds"]
    yield f"{validated['dense']:.2%} of the validation images are right, and {accuracy_of('dense'):.2%} of the test"
    for name, ending in {"cnn1": ". *Dec", "cnn2": ", with half", "vgg": f", at {times:.0f} times the"}.items():
        yield f"*Result:* {validated[name]:.2%}, and {accuracy_of(name):.2%} on the test images{ending}"


def what_makes_vgg_better():
    gains = {row: each["difference"] for row, each in effects_of("vgg_apart").items()}
    yield f"Batch normalisation brings most, {gains['batch_normalisation']:.1f} points,"
    yield f"then a third block, {gains['third_block']:.1f}, and more filters and units, {gains['wider']:.1f}."
    ordered = ["batch_normalisation", "third_block", "wider", "dropout", "two_convolutions"]
    assert sorted(gains, key=gains.get, reverse=True) == ordered
    yield f"its −{-gains['two_convolutions']:.1f} points and the {gains['dropout']:.1f} of dropout may be chance:"
    long = history_of("vgg")["validation_accuracy"][:20].max()
    short = runs.read_history(tables.OUTS / "vgg_apart" / "dropout" / "0")["validation_accuracy"].max()
    yield f"`vgg` reached {long:.2%} in the first 20 epochs of its long run, instead of {short:.2%}."
    assert 0.45 < gains["batch_normalisation"] / sum(gains.values()) < 0.55, "half of the gain"
    assert gains["two_convolutions"] < 0 and effects_of("vgg_apart")["two_convolutions"]["high"] < 0.5
    first = {name: rows[0] for name, rows in tables.rows_by("variant", tables.OUTS / "vgg_apart" / RUNS).items()}
    assert 3.5 < float(first["two_convolutions"]["pflop"]) / float(first["third_block"]["pflop"]) < 4
    noisy = [float(first[name]["with_noise"]) for name in ("batch_normalisation", "two_convolutions")]
    yield "{:.1%} are right with it, {:.1%} without (one seed each).".format(*noisy)


def how_it_solves_the_problem():
    first, second, connected, last = likeness_to_start("cnn2")
    yield f"r = {first:.2f}. Random"
    yield f"the second convolution is at {second:.2f}, the first fully connected layer at {connected:.2f}, the last"
    yield f"one at {last:.2f}. That"
    with np.load(RESULTS / "cnn2" / runs.INSIDE) as saved:
        drops, rises = (100 * saved["occlusion"].max(axis=(1, 2)), -100 * saved["occlusion"].min(axis=(1, 2)))
        assert saved["classes"][saved["labels"]][[1, 4]].tolist() == ["ship", "airplane"]
    yield f"with it covered, the probability of ship falls by up to {drops[1]:.0f} points."
    yield f"raises the probability of airplane by up to {rises[4]:.0f};"


def overfitting():
    yield f"({accuracy_of(IMPROVED, 'train'):.2%}, against {accuracy_of(IMPROVED):.2%} of the test images)"


def probabilities():
    yield "({:.2f} against {:.2f})".format(*(metrics_of(name)["test"]["loss"] for name in ("vgg", "cnn2")))


def experiments_page():
    minutes = [f"{float(row['minutes']):.1f}" for row in tables.seed_rows()["cnn2"]]
    yield f"two of `cnn2` took {minutes[1]} and {minutes[2]} minutes so, which is 6.8 each, and one alone"
    yield f"with two threads {minutes[0]} ("
    assert round((float(minutes[1]) + float(minutes[2])) / 4, 1) == 6.8


def pflop(name):
    metrics = metrics_of(name)
    return experiments.pflop(metrics["multiply_adds"], Recipe(**metrics["settings"]))


def skipped(recipe):
    """The share of the computation that it saves to skip easy images."""
    return 1 - experiments.pflop(1, recipe) / experiments.pflop(1, dataclasses.replace(recipe, skip_easy=0.0))


WITHIN_CHANCE = ("without_identity_initialisation", "without_skipping_easy_images")


def what_each_part_brings():
    lost = {row: -each["difference"] for row, each in effects_of("ablation").items()}
    by_row = tables.rows_by("variant", tables.OUTS / "ablation" / RUNS)
    assert {row["epochs"] for rows in by_row.values() for row in rows} == {"6"}
    yield f"AdamW instead of Muon costs {lost['adamw_instead_of_muon']:.1f} points,"
    yield f"`vgg` instead of `vgg_fast` {lost['vgg_by_this_recipe']:.1f},"
    yield f"and a constant rate {lost['constant_learning_rate']:.1f}."
    like_this = by_row["vgg_by_this_recipe"]
    before, after = (mean(float(row[name]) for row in like_this) for name in ("validation_accuracy", "with_noise"))
    yield f"`vgg` gets {before:.2%} of the validation images right in 6 epochs;"
    yield f"it gets at most {accuracy_of('vgg', 'validation'):.2%} in 80."
    yield f"Augmentation brings {lost['without_augmentation']:.1f} points,"
    yield f"whitening {lost['without_whitening']:.1f} and label smoothing {lost['without_label_smoothing']:.1f}."
    assert 0.4 < lost["without_identity_initialisation"] < 0.6, "half a point"
    for name, effect in effects_of("ablation").items():
        within_chance = effect["low"] < 0 < effect["high"]
        assert within_chance == (name in WITHIN_CHANCE)
    noisy = {name: mean(float(row["with_noise"]) for row in rows) for name, rows in by_row.items()}
    yield f"With it, {noisy['all_parts']:.0%} of the noisy images are right;"
    yield f"and is trained, {noisy['without_whitening']:.0%}."
    yield f"noise costs `vgg` {100 * (before - after):.0f} points when it is trained with this recipe,"
    (like_cnn2,) = tables.rows_by("variant", tables.OUTS / "vgg_apart" / RUNS)["dropout"]
    before, after = (float(like_cnn2[name]) for name in ("validation_accuracy", "with_noise"))
    yield f"and {100 * (before - after):.0f} [with the exercise's]"
    for name in ("constant_learning_rate", "adamw_instead_of_muon"):
        rates = [rows[0]["validation_accuracy"] for row, rows in by_row.items() if row.startswith(name)]
        assert len(rates) == 4 and max(rates) == rates[0], "the best of four"


def improvement():
    yield f"which saves {skipped(ablation.IMPROVED):.0%} of the computation."
    yield (
        f"The result on the test images is {accuracy_of(IMPROVED):.2%} instead of {accuracy_of('vgg'):.2%}, for "
        f"{pflop(IMPROVED):.2f} PFLOP instead of {pflop('vgg'):.1f}"
    )
    yield f"in {history_of(IMPROVED)['seconds'].sum() / 60:.0f} minutes on two CPU cores."
    by_seed = [float(row["test_accuracy"]) for row in tables.seed_rows()[IMPROVED]]
    yield "seeds 1 and 2 give {:.2%} and {:.2%}, and the mean".format(*by_seed[1:])
    yield f"of the three is {mean(by_seed):.2%}."
    longer = tables.seed_rows()["vgg_improved_longer"]
    operations = experiments.pflop(metrics_of(IMPROVED)["multiply_adds"], seeds.VARIANTS["vgg_improved_longer"].recipe)
    yield f"40 epochs, which take {operations:.2f} PFLOP,"
    longer = [float(row["test_accuracy"]) for row in longer]
    yield "give {:.2%}, {:.2%} and {:.2%}, on average {:.2%}:".format(*longer, mean(longer))
    pair = ("vgg_improved_longer", IMPROVED)
    (effect,) = common.effects({pair[0]: longer, IMPROVED: by_seed}, [pair])
    low, high = (f"{100 * effect[end]:.1f}".replace("-", "−") for end in ("low", "high"))
    yield f"{100 * effect['difference']:.1f} points more (95% interval over seeds: {low} to {high})."
    assert 85 < history_of("vgg")["seconds"].sum() / 60 < 95
    assert [round(metrics_of(name)["multiply_adds"] / 1e6) for name in ("vgg", IMPROVED)] == [154, 200]
    searched = runs.read_rows(EXPERIMENTS / "search.csv")
    for low, high, ending in ((0, 0.3, " for 0.26 PFLOP, and"), (0.7, 1, " for 0.8 to 0.9.")):
        found = [float(row["validation_accuracy"]) for row in searched if low < float(row["pflop"]) < high]
        yield f"{min(found):.1%} to {max(found):.1%}{ending}"
    shown = [runs.read_arrays(RESULTS / name / runs.INSIDE, "images", "occlusion") for name in (IMPROVED, "cnn2")]
    drops = [100 * each.max() for _, occlusion in shown for each in occlusion[:3]]
    yield "by at most {:.0f}, {:.0f} and {:.0f} points, instead of {:.0f}, {:.0f} and {:.0f}.".format(*drops)
    assert (shown[0][0][:3] == shown[1][0][:3]).all(), "the same as for cnn2"


def new_data():
    unseen, seen = (accuracy_of("cnn2", split) for split in ("test", "train"))
    yield f"`cnn2` gets {unseen:.0%} of the unseen test images right, against {seen:.0%} of its training images"
    lost = []
    for name in NETWORKS:
        without = np.delete(tables.right_of(name), tables.near_duplicates())
        lost.append(100 * (accuracy_of(name) - without.mean()))
    yield f"without them, no accuracy falls by more than {math.ceil(10 * max(lost)) / 10:.1f} points"
    wrong = (~tables.right_of(IMPROVED)[tables.doubted_labels()]).sum()
    yield f"`vgg_improved` contradicts {wrong} of the {len(tables.doubted_labels())}, so"
    yield f"{len(tables.near_duplicates())} test images have a near-duplicate"
    judged = runs.read_rows(EXPERIMENTS / "doubted_labels.csv")
    yield f"judged {len(judged)} test labels that an algorithm doubted; for {len(tables.doubted_labels())}, fewer"
    yield f"`cnn2` takes {digits_taken_for_cats('cnn2'):.0%} of them for cats"
    assert all(kept > 0.995 for kept in (kept_when("noise", 10)["dense"], kept_when("blur", 1)["dense"]))
    assert min(kept_when("noise", 10), key=kept_when("noise", 10).get) == IMPROVED
    for kind, amount in (("noise", 10), ("blur", 1), ("jpeg", 50)):
        lost = {name: accuracy_of(name) - changed_accuracies()[name, kind, amount] for name in NETWORKS}
        assert min(lost[IMPROVED], lost["vgg"]) > max(lost[name] for name in ("dense", "cnn1", "cnn2"))
    after, vgg = (changed_accuracies()[name, "noise", 10] for name in (IMPROVED, "vgg"))
    yield f"takes `{IMPROVED}` from {accuracy_of(IMPROVED):.1%} to {after:.1%}, `vgg` to {vgg:.1%} and"
    assert changed_accuracies()[IMPROVED, "noise", 20] < 0.11, "guessing"


def difference_from_dense():
    yield f"`cnn2` gets {gain('cnn2', 'dense'):.0f} points more of the test images right"
    differences = effects_of("learning_rates")
    assert max(differences["dense_3e-4"]["difference"], differences["dense_1e-3"]["high"]) < 0, "none is better"
    yield f"it loses {-differences['dense_1e-3']['difference']:.1f} points with 1e-3,"
    best = max(("cnn2_3e-4", "cnn2_1e-3"), key=lambda name: differences[name]["difference"])
    yield f"`cnn2` gains {differences[best]['difference']:.1f} with {best.removeprefix('cnn2_')}."
    assert differences[best]["low"] > 0 and 0.75 < differences[best]["difference"] < 1.25, "a point"


def invariance():
    shifted, rotated, turned = kept_when("shift", 8), kept_when("rotation", 30), kept_when("rotation", 90)
    yield (
        "leaves {dense:.0%} for `dense`, {cnn1:.0%} for `cnn1`, {cnn2:.0%} for `cnn2`, {vgg:.0%} for `vgg` and "
        "{vgg_improved:.0%} for `vgg_improved`.".format(**shifted)
    )
    for kept, words in (
        (
            rotated,
            "leaves {:.0%} for `dense`, and only {:.0%} to {:.0%} for the three convolutional networks of the same",
        ),
        (turned, "`dense` keeps {:.0%} and they keep {:.0%} to {:.0%}."),
    ):
        others = [kept[name] for name in ("cnn1", "cnn2", "vgg")]
        yield words.format(kept["dense"], min(others), max(others))


CLAIMS = {
    (README, "CIFAR-10 with convolutional networks"): readme_introduction,
    (README, "Quick start"): readme_quick_start,
    (README, "What came out"): readme_findings,
    (README, "Speed"): readme_speed,
    (PAGE, "Speed"): page_speed,
    (PAGE, "Experiments"): experiments_page,
    (REPORT, "Formalisation"): formalisation,
    (REPORT, "Data"): data_section,
    (REPORT, "Loss"): loss,
    (REPORT, "Hyper-parameters"): hyper_parameters,
    (REPORT, "Training"): training,
    (REPORT, "Evaluation"): evaluation,
    (REPORT, "The design feedback loop"): design_loop,
    (REPORT, "What makes `vgg` better than `cnn2`?"): what_makes_vgg_better,
    (REPORT, "How does the model solve the problem?"): how_it_solves_the_problem,
    (REPORT, "Are its probabilities probabilities?"): probabilities,
    (REPORT, "Is there overfitting or underfitting?"): overfitting,
    (REPORT, "How could it be improved?"): improvement,
    (REPORT, "What does each part of it bring?"): what_each_part_brings,
    (REPORT, "How does it generalise to new data?"): new_data,
    (REPORT, "What is different from the dense model?"): difference_from_dense,
    (REPORT, "Is it invariant to translation and rotation?"): invariance,
}

# Numbers that were chosen, defined or measured by others.
DEFINED = [
    "a probability of 82% instead of 100%",
    "the 60% of the images",
    "after 3 epochs",
    "95% interval",
    "airbench reports 94% for 0.36 PFLOP",
    "a probability of 100%",
    "the correct loss is lowest at 60%",
    "Guessing gives 10%.",
    "lowest recall is 45%",
    "2.40 and 2.46",
    "keeps 1.46",
    "gives a probability of 80%",
    "towards 82% instead of 100%",
    "between 70% and 90%",
    "80 epochs",
    "2.30 where all ten",
    "recipe in 20 epochs",
    "two higher ones, in 20 epochs",
    "in 20 epochs, batch",
    "(20 epochs, one seed)",
    "in 6 epochs instead of 28",
    "in 6 epochs.",
    "may bring more in 28",
    "accuracy of about 60%",
    "between epochs 60 and 80",
    "a precision of 55–70%, a recall of 45–70% and an F1 of 50–70%",
    "Python 3.10",
    "lost 4 to 10 points",
    "weight decay (0.01)",
    "Apache-2.0",
]


def plain(text):
    return " ".join(text.split())


def sections(path):
    """The prose of a text by the heading that it stands under: no code, no tables."""
    text = re.sub(r"```.*?```", "", tables.MARKED.sub("", TEXTS[path]), flags=re.DOTALL)
    if path == PAGE:
        text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)  # how long an experiment takes, in about
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)[1:]
    return {heading: plain(prose) for heading, prose in zip(parts[::2], parts[1::2])}


SECTIONS = [(path, heading) for path in TEXTS for heading in sections(path) if heading != "References"]


@pytest.mark.parametrize(("path", "heading"), SECTIONS, ids=lambda each: str(each)[-40:])
def test_measured_numbers_in_the_sentences_are_those_of_the_committed_files(path, heading):
    prose = sections(path)[heading]
    claims = list(CLAIMS.get((path, heading), tuple)())
    assert not [claim for claim in claims if claim not in prose]
    for known in sorted([*claims, *DEFINED], key=len, reverse=True):
        prose = prose.replace(known, "")
    assert not re.findall(r".{0,40}(?:\d ?%|\d+\.\d+|\d points|epochs? \d|\d epochs|\d minutes).{0,20}", prose)


def test_every_section_with_claims_is_there():
    assert CLAIMS.keys() <= set(SECTIONS)


def anchors(path):
    """The anchors that GitHub gives the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    kept = string.ascii_lowercase + string.digits + "-_ "
    return {"".join(each for each in heading.lower() if each in kept).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.parent.name)
def test_no_link_is_dead(path):
    text = path.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert links
    for link in links:
        if not link.startswith("http"):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), link
            target = target / "README.md" if target.is_dir() else target
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", [README, REPORT], ids=lambda path: path.parent.name)
def test_the_command_of_the_improved_network_is_that_of_the_committed_run(path):
    assert f"python train.py {ablation.COMMAND}" in plain(TEXTS[path].replace("\\\n", ""))
    assert dataclasses.asdict(ablation.IMPROVED) == metrics_of(IMPROVED)["settings"]


def test_the_defaults_are_the_recipe_of_the_committed_runs():
    assert all(Recipe(**metrics_of(name)["settings"]) == Recipe() for name in BY_EXERCISE)


def test_the_readme_is_short():
    assert len(TEXTS[README].splitlines()) <= 250
