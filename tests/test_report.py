"""The README, the lab report and the page on experiments say what the committed files say: their tables, and every
measured number in their sentences."""

import dataclasses
import functools
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
from experiments import ablation, seeds, tables
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
    """The share of its accuracy that each network keeps on changed images, as a dict."""
    accuracy = changed_accuracies()
    return {name: accuracy[name, kind, amount] / accuracy[name, kind, 0] for name in NETWORKS}


NOISY = [(IMPROVED, "noise", 0), (IMPROVED, "noise", 10), ("dense", "noise", 10)]

# The measured numbers of a text by section: stretches of its prose, made from the files that have them.


def readme_introduction():
    rows = tables.seed_rows()[IMPROVED]
    accuracy, minutes = (mean(float(row[name]) for row in rows) for name in ("test_accuracy", "minutes"))
    yield f"a test accuracy of {accuracy:.1%}, on average over three seeds, after {minutes:.0f} minutes of training"
    assert len(rows) == 3


def readme_quick_start():
    assert 7 <= history_of("cnn2")["seconds"].sum() / 60 <= 9
    yield "about eight minutes"
    yield f"a test accuracy of about {accuracy_of('cnn2'):.0%}"
    minutes = mean(float(row["minutes"]) for row in tables.seed_rows()[IMPROVED])
    yield f"The best network, in about {minutes:.0f} minutes"


def readme_findings():
    yield f"is lowest at epoch {lowest_loss_at('cnn2')} of 80"
    by_run = {run: [float(row["test_accuracy"]) for row in rows] for run, rows in tables.seed_rows().items()}
    assert max(stdev(by_run[run]) for run in ("dense", "cnn1", "cnn2")) < 0.005
    yield "`vgg_improved` reaches {:.2%} and {:.2%}.".format(*by_run[IMPROVED][1:])
    twice = runs.read_metrics(SOFTMAX_TWICE)["test"]["accuracy"]
    yield f"costs {100 * (accuracy_of('cnn2') - twice):.1f} points of test accuracy"
    yield f"right in {accuracy_of('vgg'):.2%} of the test images, but gives its answers a probability of"
    yield f"{confidence_of('vgg'):.2%} on average"
    yield f"is right in {accuracy_of(IMPROVED):.2%} and gives {confidence_of(IMPROVED):.2%} "
    assert 3 < pflop("vgg") / pflop(IMPROVED) < 4
    yield f"less than a third of the computation of `vgg` in training, for {gain(IMPROVED, 'vgg'):.1f} points more"
    kept = kept_when("shift", 8)
    yield f"`cnn2` keeps {kept['cnn2']:.0%} of its accuracy and `dense` {kept['dense']:.0%};"
    yield f"which was trained on shifted images, keeps {kept[IMPROVED]:.0%} "
    before, after, dense = (changed_accuracies()[each] for each in NOISY)
    yield f"takes `{IMPROVED}` from {before:.1%} to {after:.1%}, far below `dense`, which keeps {dense:.1%} "
    assert after < dense / 2
    folders = [SOFTMAX_TWICE, *(tables.OUTS / "seeds" / "softmax_twice").iterdir()]
    matrices = [runs.read_metrics(folder)["test"]["confusion_matrix"] for folder in folders]
    assert sum(not any(row[1] for row in matrix) for matrix in matrices) == 1, "never an automobile"
    yield f"with one of {['four', 'five'][len(folders) - 4]} seeds, the network never predicts one of the classes"


def readme_speed():
    """Between a quarter and a half."""
    measured = tables.measured_speed("steps")
    for name in BY_EXERCISE:
        assert 1.95 < measured[name]["ratios"]["usual script / project"]["median"] < 4
    return []


def page_speed():
    rows, values = runs.read_rows(EXPERIMENTS / "precision.csv"), {}
    for row in rows:
        values.setdefault(row["precision"], []).append(float(row["validation_accuracy"]))
    means, spreads = ([function(values[name]) for name in ("bf16", "fp32")] for function in (mean, stdev))
    yield "validation accuracy is {:.2%} on average in bf16 and {:.2%} in fp32".format(*means)
    yield "standard deviations of {:.2f} and {:.2f} points".format(*(100 * value for value in spreads))


def data_section():
    model, _ = models.load_model(RESULTS / "cnn2" / runs.BEST)
    numbers = [f"{value:.1f}" for each in (model.mean, model.std) for value in each.flatten().tolist()]
    yield "images, {}, {} and {} for red, green and blue,".format(*numbers[:3])
    yield "standard deviation, {}, {} and {}.".format(*numbers[3:])


def formalisation():
    yield f"{metrics_of('cnn2')['parameters']:,} of them in `cnn2`"


def loss():
    twice, once = runs.read_metrics(SOFTMAX_TWICE), metrics_of("cnn2")
    yield f"{100 * (once['test']['accuracy'] - twice['test']['accuracy']):.1f} points of test accuracy"
    right = [evaluate.right_predictions(folder) for folder in (RESULTS / "cnn2", SOFTMAX_TWICE)]
    yield "{} images are right without it only, {} with it only".format(*evaluate.paired_difference(*right)[:2])
    epoch = once["best_epoch"]
    slow, fast = (runs.read_history(each)["validation_accuracy"] for each in (SOFTMAX_TWICE, RESULTS / "cnn2"))
    yield f"at epoch {epoch}, validation accuracy is {slow[epoch - 1]:.2%} instead of {fast[epoch - 1]:.2%}."
    falling = runs.read_history(SOFTMAX_TWICE)["validation_loss"]
    assert falling[-20:].max() - falling[-20:].min() < 0.02 and falling[0] - falling[-1] > 0.2
    other = runs.read_metrics(tables.OUTS / "seeds" / "softmax_twice" / "1")["test"]
    assert not any(row[1] for row in other["confusion_matrix"]), "never an automobile"
    yield f"never predicts *automobile*, and gets {other['accuracy']:.2%} of the test images"
    yield f"cross-entropy on the test images is {twice['test']['loss']:.2f} instead of {once['test']['loss']:.2f}"


def hyper_parameters():
    latest = max(int(row["best_epoch"]) for run in ("dense", "cnn1", "cnn2") for row in tables.seed_rows()[run])
    yield f"with each seed, the small ones peak within {5 * math.ceil(latest / 5)} epochs"


def training():
    yield f"Its validation loss is lowest at epoch {lowest_loss_at('cnn2')}."
    yield f"peaks at epoch {metrics_of('cnn2')['best_epoch']} and"
    yield f"turns at epoch {lowest_loss_at('dense')}."
    yield f"From epoch {lowest_loss_at('cnn1')} to the last one"
    losses = history_of("cnn1")["validation_loss"]
    assert losses[-1] > 2 * losses.min()
    losses = history_of("vgg")["validation_loss"]
    assert 1.77 < losses[-1] / losses.min() < 1.83
    yield f"Its validation loss turns at epoch {lowest_loss_at('vgg')} and then rises by four fifths"
    yield f"up to the best epoch, {metrics_of('vgg')['best_epoch']}."
    true = [float(row["validation_loss"]) for row in runs.read_rows(SOFTMAX_TWICE / runs.TRUE_LOSS)]
    turns = true.index(min(true)) + 1
    yield f"rises from {min(true):.2f} at epoch {turns} to {true[-1]:.2f} at the end"
    assert max(map(lowest_loss_at, BY_EXERCISE)) < 20


def evaluation():
    metrics = metrics_of("cnn2")["test"]
    ranges = {}
    for column in ("precision", "recall", "f1"):
        values = {label: values[column] for label, values in metrics["per_class"].items()}
        assert min(values, key=values.get) == ("bird" if column == "precision" else "cat")
        ranges[column] = f"{100 * min(values.values()):.0f}–{max(values.values()):.0%}"
    yield f"`cnn2` has {metrics['accuracy']:.2%}, and by class"
    yield "a precision of {precision}, a recall of {recall} and an F1 of {f1}: better".format(**ranges)
    vehicles, animals = [0, 1, 8, 9], [2, 3, 4, 5, 6, 7]
    wrong = np.array(metrics["confusion_matrix"]) * (1 - np.eye(10, dtype=int))
    near = sum(wrong[np.ix_(kind, kind)].sum() for kind in (vehicles, animals))
    yield f"Four fifths of the mistakes of `cnn2` stay among animals or among vehicles, {near:,} of {wrong.sum():,}."
    assert 0.78 < near / wrong.sum() < 0.82
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
    matrices = [np.array(metrics_of(name)["test"]["confusion_matrix"]) / 1000 for name in ("vgg", "cnn2")]
    for true, predicted in ((3, 5), (5, 3)):
        yield "({:.1%} instead of {:.1%})".format(*(matrix[true, predicted] for matrix in matrices))
    steps = tables.steps_over_seeds()
    yield f"[{seeds.ROWS['vgg_improved_longer'].recipe.epochs} epochs](#how"
    smallest = min(steps, key=lambda pair: steps[pair]["difference"])
    difference = f"{100 * steps[smallest]['difference']:.1f}"
    yield f"The smallest step, from `{smallest[1]}` to `{smallest[0]}`, is {difference} points over the seeds"
    better = []
    for name in BY_EXERCISE:
        rows = tables.seed_rows()[name]
        test, validation = ([float(row[f"{split}_accuracy"]) for row in rows] for split in ("test", "validation"))
        assert len(rows) == 1 or stdev(test) < 0.005
        better += [there > here for here, there in zip(test, validation)]
    yield f"{sum(better)} of the {len(better)} runs with the exercise's recipe do better on the"
    times = metrics_of("vgg")["multiply_adds"] / metrics_of("cnn2")["multiply_adds"]
    yield f"{validated['dense']:.2%} of the validation images are right, and {accuracy_of('dense'):.2%} of the test"
    for name, ending in {"cnn1": ". *Dec", "cnn2": ", with half", "vgg": f", at {times:.0f} times the"}.items():
        yield f"*Result:* {validated[name]:.2%}, and {accuracy_of(name):.2%} on the test images{ending}"


def how_it_solves_the_problem():
    first, second, connected, last = likeness_to_start("cnn2")
    yield f"r = {first:.2f}; those of the second are at {second:.2f}, the weights of the first fully connected layer at"
    yield f"layer at {connected:.2f}, those of the last at {last:.2f}."
    with np.load(RESULTS / "cnn2" / runs.INSIDE) as saved:
        drops, rises = (100 * saved["occlusion"].max(axis=(1, 2)), -100 * saved["occlusion"].min(axis=(1, 2)))
        assert saved["classes"][saved["labels"]][[1, 4]].tolist() == ["ship", "airplane"]
    yield f"its probability falls by up to {drops[1]:.0f} points."
    yield f"raises the probability of airplane by up to {rises[4]:.0f}."


def probabilities():
    yield "({:.2f} against {:.2f})".format(*(metrics_of(name)["test"]["loss"] for name in ("vgg", "cnn2")))


def experiments_page():
    minutes = [f"{float(row['minutes']):.1f}" for row in tables.seed_rows()["cnn2"]]
    yield f"`cnn2` took {minutes[1]} and {minutes[2]} minutes so, which is 6.8 a run, and {minutes[0]} alone"
    assert round((float(minutes[1]) + float(minutes[2])) / 4, 1) == 6.8


def pflop(name):
    metrics = metrics_of(name)
    return experiments.pflop(metrics["multiply_adds"], Recipe(**metrics["settings"]))


def improvement():
    yield (
        f"The result on the test images is {accuracy_of(IMPROVED):.2%} instead of {accuracy_of('vgg'):.2%}, for "
        f"{pflop(IMPROVED):.2f} PFLOP instead of {pflop('vgg'):.1f} (counting"
    )
    yield f"in {history_of(IMPROVED)['seconds'].sum() / 60:.0f} minutes on two CPU cores."
    by_seed = [float(row["test_accuracy"]) for row in tables.seed_rows()[IMPROVED]]
    yield "seeds 1 and 2 give {:.2%} and {:.2%}, and the mean".format(*by_seed[1:])
    yield f"of the three is {mean(by_seed):.2%}."
    longer = tables.seed_rows()["vgg_improved_longer"]
    operations = experiments.pflop(metrics_of(IMPROVED)["multiply_adds"], seeds.ROWS["vgg_improved_longer"].recipe)
    yield f"40 epochs, which take {operations:.2f} PFLOP,"
    pairs = {
        split: [100 * float(row[f"{split}_accuracy"]) for row in (*longer[:2], *tables.seed_rows()[IMPROVED][:2])]
        for split in ("test", "validation")
    }
    yield "give {:.2f}% and {:.2f}% with seeds 0 and 1 ({:.2f}% and {:.2f}% before), and".format(*pairs["test"])
    yield "images {:.2f}% and {:.2f}% ({:.2f}% and {:.2f}%).".format(*pairs["validation"])
    assert 85 < history_of("vgg")["seconds"].sum() / 60 < 95
    assert [round(metrics_of(name)["multiply_adds"] / 1e6) for name in ("vgg", IMPROVED)] == [154, 200]
    searched = runs.read_rows(EXPERIMENTS / "search.csv")
    values = [float(row["validation_accuracy"]) for row in searched]
    sgd, bare, _, _, _, long, _, muon, long_muon, muon_wider, muon_wide, sgd_wider, sgd_wide, *skipping = values
    wide = [muon_wider, muon_wide, sgd_wider, sgd_wide]
    assert len(skipping) == 3 and max(values[:13]) < 0.94
    yield f"8 epochs of a narrower network reached {sgd:.2%} validation accuracy with SGD and {muon:.2%} with Muon,"
    yield "for 0.26 PFLOP."
    yield f"reached {min(skipping):.2%} to {max(skipping):.2%} for 0.92 PFLOP, {mean(skipping):.1%} on average;"
    yield f"for 0.82, {mean(wide):.1%}."
    yield f"25 epochs reached {long:.2%} with SGD, 24 reached {long_muon:.2%} with Muon."
    yield f"reached {min(wide):.2%} to {max(wide):.2%}."
    yield f"8 epochs with SGD reached {bare:.2%}."
    yield f"it claims {confidence_of(IMPROVED):.2%} on average."
    with np.load(RESULTS / IMPROVED / runs.INSIDE) as saved:
        assert saved["classes"][saved["labels"][:3]].tolist() == ["cat", "ship", "ship"]
        yield "at most {:.0f} points for the cat, {:.0f} and {:.0f} for the".format(
            *(100 * each.max() for each in saved["occlusion"][:3])
        )


def new_data():
    lost = []
    for name in NETWORKS:
        without = np.delete(tables.right_of(name), tables.near_duplicates())
        lost.append(100 * (accuracy_of(name) - without.mean()))
    yield f"without them, no accuracy falls by more than {math.ceil(10 * max(lost)) / 10:.1f} points"
    wrong = (~tables.right_of(IMPROVED)[tables.doubted_labels()]).sum()
    yield f"`vgg_improved` contradicts {wrong} of the {len(tables.doubted_labels())}."
    yield f"{len(tables.near_duplicates())} test images have a near-duplicate"
    judged = runs.read_rows(EXPERIMENTS / "doubted_labels.csv")
    yield f"judged {len(judged)} test labels that an algorithm doubted; for {len(tables.doubted_labels())}, fewer"
    yield f"`cnn2` takes {digits_taken_for_cats('cnn2'):.0%} of them for cats"
    assert all(kept > 0.995 for kept in (kept_when("noise", 10)["dense"], kept_when("blur", 1)["dense"]))
    assert min(kept_when("noise", 10), key=kept_when("noise", 10).get) == IMPROVED
    for kind, amount in (("noise", 10), ("blur", 1), ("jpeg", 50)):
        lost = {name: (1 - kept) * accuracy_of(name) for name, kept in kept_when(kind, amount).items()}
        assert min(lost[IMPROVED], lost["vgg"]) > max(lost[name] for name in ("dense", "cnn1", "cnn2"))
    after, vgg = (changed_accuracies()[name, "noise", 10] for name in (IMPROVED, "vgg"))
    yield f"takes `{IMPROVED}` from {accuracy_of(IMPROVED):.1%} to {after:.1%}, `vgg` to {vgg:.1%} and"


def difference_from_dense():
    yield f"`cnn2` gets {gain('cnn2', 'dense'):.0f} points more of the test images right"


def invariance():
    shifted, rotated = kept_when("shift", 8), kept_when("rotation", 30)
    yield (
        "`dense` keeps {dense:.0%} of its accuracy, `cnn1` {cnn1:.0%}, `cnn2` {cnn2:.0%}, `vgg` {vgg:.0%} and "
        "`vgg_improved` {vgg_improved:.0%}.".format(**shifted)
    )
    others = [rotated[name] for name in BY_EXERCISE if name != "dense"]
    yield (
        f"`dense` keeps {rotated['dense']:.0%} of its accuracy and the convolutional networks of the same recipe only "
        f"{min(others):.0%} to {max(others):.0%}"
    )
    turned = kept_when("rotation", 90)
    others = [turned[name] for name in BY_EXERCISE if name != "dense"]
    yield f"`dense` keeps {turned['dense']:.0%} and they keep {min(others):.0%} to {max(others):.0%}."


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
    (REPORT, "How does the model solve the problem?"): how_it_solves_the_problem,
    (REPORT, "Are its probabilities probabilities?"): probabilities,
    (REPORT, "How could it be improved?"): improvement,
    (REPORT, "How does it generalise to new data?"): new_data,
    (REPORT, "What is different from the dense model?"): difference_from_dense,
    (REPORT, "Is it invariant to translation and rotation?"): invariance,
}

# Numbers that were chosen, defined or measured by others.
DEFINED = [
    "a probability of 82% instead of 100%",
    "the 60% of the images",
    "after 3 epochs",
    "saves 40% of the computation",
    "95% interval",
    "the 94% that airbench reports",
    "gives 80%",
    "a loss of 1.46",
    "80 epochs",
    "2.30 where all ten",
    "over 20 epochs",
    "accuracy of about 60%",
    "between epochs 60 and 80",
    "a precision of 55–70%, a recall of 45–70% and an F1 of 50–70%",
    "Python 3.10",
    "lost 4 to 10 points",
    "from 93.0 to 85.1 ",
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
    assert not re.findall(r".{0,40}(?:\d ?%|\d+\.\d+ |\d points|epochs? \d|\d epochs|\d minutes).{0,20}", prose)


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


def test_the_readme_is_short():
    assert len(TEXTS[README].splitlines()) <= 250
