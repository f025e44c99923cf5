"""The README says what the committed files say."""

import json
import re

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
