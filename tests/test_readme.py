"""The README says what the committed files say."""

import csv
import json
import re
import statistics

import plots
from conftest import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "outs" / "exercise_04"


def test_result_table_is_that_of_the_committed_metrics():
    metrics = json.loads((RESULTS / "cnn2" / plots.METRICS).read_text())
    for split in plots.SPLITS:
        values = metrics[split]
        low, high = values["accuracy_interval"]
        shares = (values["macro"][name] for name in ("precision", "recall", "f1"))
        cells = [split, f"{values['samples']:,}", f"{values['accuracy']:.2%}", f"{low:.2%} to {high:.2%}"]
        cells += [*(f"{share:.2%}" for share in shares), f"{values['loss']:.4f}"]
        assert f"| {' | '.join(cells)} |" in README


def test_epochs_in_the_text_are_those_of_the_committed_history():
    history = plots.read_history(RESULTS / "cnn2")
    assert f"validation loss is lowest at epoch {history['validation_loss'].argmin() + 1};" in README
    best = json.loads((RESULTS / "cnn2" / plots.METRICS).read_text())["best_epoch"]
    assert f"peak at epoch {best} " in README and f"the other {len(history['epoch']) - best} epochs" in README
    assert f"{history['train_accuracy'][-1]:.0%} accuracy".replace("%", " %") in README
    assert "about eight minutes" in README and 7 < history["seconds"].sum() / 60 < 9


def test_every_linked_file_is_there():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_speed_is_that_of_the_committed_measurement():
    measured = json.loads((ROOT / "benchmarks" / "throughput.json").read_text())
    for model, values in measured["steps"].items():
        times = {contestant: summary["median"] for contestant, summary in values["milliseconds"].items()}
        usual = min(time for contestant, time in times.items() if contestant.startswith("usual"))
        ratios = values["ratios"]
        ratio, fp32 = ratios["usual script / project"], ratios["usual script / project fp32"]["median"]
        spread = f"{ratio['median']:.1f} ({ratio['minimum']:.1f} to {ratio['maximum']:.1f})"
        cells = [f"`{model}`", f"{times['project']:.2f} ms", f"{usual:.2f} ms", spread, f"{fp32:.1f}"]
        cells.append(f"{ratios['project / floor']['median']:.2f}")
        assert f"| {' | '.join(cells)} |" in README
    with open(ROOT / "benchmarks" / "precision.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for precision in ("bf16", "fp32"):
        best = [float(row["validation_accuracy"]) for row in rows if row["precision"] == precision]
        assert len(best) == 3
        assert f"{statistics.mean(best):.2%}" in README and f"{100 * statistics.stdev(best):.2f}" in README
