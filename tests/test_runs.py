import dataclasses
import io
import os
import pickle
import shutil
import zipfile

import pytest
import torch

import evaluate
import models
import runs
import train
from conftest import DIGITS, assert_same_weights, history_without_seconds, interrupt_call, interrupted, quick
from recipe import Recipe

IMAGES = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_best_epoch_has_the_highest_validation_accuracy_then_the_lowest_loss():
    rows = [(0.5, 1.0), (0.7, 1.3), (0.7, 1.2), (0.7, 1.25), (0.6, 0.9)]
    history = [
        {"epoch": number, "validation_accuracy": accuracy, "validation_loss": loss}
        for number, (accuracy, loss) in enumerate(rows, 1)
    ]
    assert runs.best_epoch(history) == 3
    assert runs.best_epoch(history[:2]) == 2


HERE = ["--out-dir", "."]


@pytest.fixture
def run(two_epochs, tmp_path):
    """A copy of a finished run of cnn1, of two epochs, the second of which is the best."""
    return shutil.copytree(two_epochs, tmp_path / "cnn1")


def change_checkpoint(path, **changes):
    runs.save_checkpoint(path, dataclasses.replace(runs.load_checkpoint(path), **changes))


def test_target_loss_ends_a_run_until_it_is_removed(call, tmp_path, few_digits):
    quick(call, *HERE, "--target-loss", "1.5", epochs=50)
    *losses, last = [float(row["validation_loss"]) for row in history_without_seconds(tmp_path / "cnn1")]
    assert last <= 1.5 < min(losses) and (tmp_path / "cnn1/metrics.json").exists()
    assert "epoch" not in quick(call, *HERE, "--resume", epochs=50)[1].partition("best.pt")[0]
    more = len(losses) + 2
    assert f"epoch {more}/{more}" in quick(call, *HERE, "--resume", "--target-loss", "off", epochs=more)[1]
    assert runs.load_checkpoint(tmp_path / "cnn1/last.pt").recipe.target_loss is None


def test_best_checkpoint_of_another_run_is_rejected(call, run):
    history = runs.load_checkpoint(run / "last.pt").history
    history[0]["validation_accuracy"] = 1.0  # the first epoch is the best: last.pt doesn't hold it
    change_checkpoint(run / "last.pt", history=history)
    change_checkpoint(run / "best.pt", epoch=1, run_id="other")
    err = quick(call, *HERE, "--resume", epochs=3, code=2)[2]
    assert "best.pt doesn't belong to the run in" in err and "--overwrite" in err and len(err.splitlines()) == 1


def test_resume_restores_files_that_a_kill_left_an_epoch_behind(call, run):
    """last.pt is written first; best.pt and history.csv may be from the previous epoch, or from the previous run."""
    history = (run / "history.csv").read_bytes()
    (run / "history.csv").write_bytes(b"".join(history.splitlines(keepends=True)[:2]))
    change_checkpoint(run / "best.pt", epoch=1, run_id="previous", weights=models.build("cnn1").state_dict())
    assert "epoch 2/2" not in quick(call, *HERE, "--resume")[1]
    assert runs.load_checkpoint(run / "best.pt").epoch == 2
    assert_same_weights(run / "best.pt", run / "last.pt")
    assert (run / "history.csv").read_bytes() == history


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
def test_invalid_state_is_not_resumed_and_prints_one_line(call, run, damage):
    change_checkpoint(run / "last.pt", **damage)
    code, out, err = quick(call, *HERE, "--resume", epochs=3, code=2)
    assert "last.pt" in err and len(err.splitlines()) == 1 and "epoch" not in out


def test_resume_continues_a_finished_run_with_more_epochs_and_its_own_settings(call, tmp_path, few_digits):
    options = [*HERE, "--seed", "5", "--augment"]
    quick(call, *options, "--run-name", "whole")
    quick(call, *options, epochs=1)
    quick(call, *HERE, "--resume")
    assert_same_weights(tmp_path / "whole/last.pt", tmp_path / "cnn1/last.pt")
    assert "epoch 2/2" not in quick(call, *HERE, "--resume")[1]


def test_resume_fills_in_settings_that_older_versions_did_not_save(call, run):
    for path in (run / "last.pt", run / "best.pt"):
        saved = torch.load(path, weights_only=True)
        for name in ("optimizer", "label_smoothing"):
            del saved["settings"][name]
        torch.save({name: value for name, value in saved.items() if name != "run_id"}, path)
    quick(call, *HERE, "--resume", "--label-smoothing", "0.1", epochs=3, code=2)
    quick(call, *HERE, "--resume", epochs=3)
    assert runs.load_checkpoint(run / "last.pt").recipe == Recipe(epochs=3)


def test_extended_run_is_unfinished_until_it_is_evaluated_again(call, run, monkeypatch):
    with monkeypatch.context() as evaluation:
        evaluation.setattr(evaluate, "evaluate_checkpoint", interrupted)
        quick(call, *HERE, "--resume", epochs=3, code=130)
    assert "unfinished" in quick(call, *HERE, epochs=3, code=2)[2]
    assert "less" in quick(call, *HERE, "--resume", epochs=2, code=2)[2]
    quick(call, *HERE, "--resume", epochs=3)


def test_stopped_run_can_be_ended_at_its_current_epoch(call, monkeypatch, few_digits):
    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "print_epoch", interrupted)
        quick(call, *HERE, epochs=3, code=130)
    quick(call, *HERE, "--resume", epochs=1)
    quick(call, *HERE, epochs=1)  # it is finished, so a new run may replace it


def test_replaced_run_leaves_no_files_behind(call, run, monkeypatch, few_digits):
    options = [*HERE, "--run-name", "cnn1"]
    with monkeypatch.context() as first_step:
        interrupt_call(first_step, train, "train_step", 1)
        err = quick(call, *options, model="dense", code=130)[2]
    assert "start again with the same command" in err and "--resume" not in err
    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "print_epoch", interrupted)
        quick(call, *options, model="dense", code=130)
    left = {path.name for path in run.iterdir()}
    assert left == {".lock", "best.pt", "last.pt", "history.csv", "loss_plot.png"}


def test_full_disk_at_the_first_save_keeps_the_previous_best(call, run, monkeypatch, few_digits):
    def full(handle):
        raise OSError(28, "No space left on device")

    previous = (run / "best.pt").read_bytes()
    with monkeypatch.context() as disk:
        disk.setattr(runs.os, "fsync", full)
        assert "last.pt: No space left" in quick(call, *HERE, "--seed", "1", epochs=1, code=2)[2]
    assert (run / "best.pt").read_bytes() == previous and not list(run.glob("*.tmp"))


def test_disk_that_fills_up_in_the_second_epoch_keeps_the_first(call, two_epochs, tmp_path, monkeypatch):
    """A limit on the file size acts like a disk that is full in the middle of a checkpoint."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(*arguments, **options):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))

    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "print_epoch", fill_disk)
        try:
            err = quick(call, *HERE, code=2)[2]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cnn1/last.pt: File too large" in err and "--resume" in err and "Traceback" not in err
    assert not list(tmp_path.rglob("*.tmp"))
    assert runs.load_checkpoint(tmp_path / "cnn1/last.pt").epoch == 1
    quick(call, *HERE, "--resume")
    assert_same_weights(two_epochs / "last.pt", tmp_path / "cnn1/last.pt")


def test_finished_run_is_replaced_but_an_unfinished_one_only_with_overwrite(call, run, few_digits):
    first = (run / "last.pt").read_bytes()
    quick(call, *HERE, "--seed", "2", epochs=1)  # the first was finished
    second = (run / "last.pt").read_bytes()
    (run / "metrics.json").unlink()  # as if killed before its end
    err = quick(call, *HERE, "--seed", "3", epochs=1, code=2)[2]
    assert "--resume" in err and "--overwrite" in err and len(err.splitlines()) == 1
    assert (run / "last.pt").read_bytes() == second != first
    quick(call, *HERE, "--seed", "3", "--overwrite", epochs=1)
    assert (run / "last.pt").read_bytes() != second


def test_two_runs_never_share_a_folder(call, tmp_path):
    with runs.claim_folder(tmp_path / "outs/digits/cnn1"):
        for options in ([], ["--overwrite"]):
            err = quick(call, *options, code=2)[2]
            assert "another process is writing" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model", "cnn2", *DIGITS], "--model cnn1, not cnn2"),
        (["--model", "cnn1"], "--dataset digits, not cifar10"),
        (["--model", "cnn1", *DIGITS, "--batch-size", "64"], "batch_size 32, not 64"),
        (["--model", "cnn1", *DIGITS, "--augment"], "augment False, not True"),
        (["--model", "cnn1", *DIGITS, "--label-smoothing", "0.1"], "label_smoothing 0.0, not 0.1"),
        (["--model", "cnn1", *DIGITS, "--epochs", "3"], "epochs 2, not 3"),  # the schedule would have been another
    ],
)
def test_run_is_not_resumed_with_other_settings(call, run, options, reason):
    if "--epochs" in options:
        change_checkpoint(run / "last.pt", recipe=Recipe(epochs=2, schedule="linear"))
    before = {path: path.read_bytes() for path in run.iterdir()}
    code, out, err = call(train.main, *options, *HERE, "--run-name", "cnn1", "--resume")
    assert code == 2 and reason in err and len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_damaged_or_stateless_checkpoints_are_not_resumed(call, run):
    last, best = run / "last.pt", run / "best.pt"
    whole = last.read_bytes()
    for content, reason in ((whole[:-100], "damaged"), (best.read_bytes(), "no optimiser state")):
        last.write_bytes(content)
        err = quick(call, *HERE, "--resume", code=2)[2]
        assert "last.pt" in err and reason in err and len(err.splitlines()) == 1
    last.write_bytes(whole)
    best.unlink()
    quick(call, *HERE, "--resume")  # the last epoch was the best: last.pt has it too
    assert best.exists()


def a_checkpoint():
    model = models.build("cnn1")
    model.fit_input(IMAGES)
    return {
        "format_version": runs.FORMAT_VERSION,
        "model": "cnn1",
        "dataset": "digits",
        "classes": [str(digit) for digit in range(10)],
        "epoch": 3,
        "settings": {"seed": 0},
        "split_seed": 0,
        "environment": {"device": "cpu", "precision": "fp32"},
        "seconds": 1.5,
        "weights": model.state_dict(),
    }


def test_checkpoint_alone_is_enough_to_predict(tmp_path):
    saved = a_checkpoint()
    torch.save(saved, tmp_path / "best.pt")
    model, checkpoint = models.load_model(tmp_path / "best.pt")
    assert checkpoint.epoch == 3 and checkpoint.classes[9] == "9"
    for name, tensor in saved["weights"].items():
        assert torch.equal(model.state_dict()[name], tensor), name
    runs.save_checkpoint(tmp_path / "again.pt", checkpoint)
    again = torch.load(tmp_path / "again.pt", weights_only=True)  # torch.load reads it, without this project
    assert again["model"] == "cnn1" and again["settings"]["epochs"] == 80


def refusal(path):
    with pytest.raises(runs.CheckpointError) as refused:
        models.load_model(path)
    message = str(refused.value)
    assert str(path) in message and "\n" not in message
    return message


class Hostile:
    def __reduce__(self):
        return open, ("ran.txt", "w")


def test_malicious_checkpoint_is_rejected_and_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = a_checkpoint() | {"settings": Hostile()}
    archive = io.BytesIO()
    torch.save(hostile, archive)
    with zipfile.ZipFile(io.BytesIO(archive.getvalue())) as names:
        assert any(name.endswith("data.pkl") for name in names.namelist())
    for content in (pickle.dumps(hostile), archive.getvalue()):
        (tmp_path / "best.pt").write_bytes(content)
        refusal(tmp_path / "best.pt")
        assert not (tmp_path / "ran.txt").exists()
    torch.load(tmp_path / "best.pt", weights_only=False)
    assert (tmp_path / "ran.txt").exists(), "the file would run code without weights_only"


def test_damaged_checkpoint_is_detected(tmp_path):
    """Truncated anywhere, or with one bit of its content flipped."""
    path = tmp_path / "best.pt"
    saved = a_checkpoint()
    torch.save(saved, path)
    whole = path.read_bytes()
    for position in torch.randint(0, len(whole), (20,), generator=torch.Generator().manual_seed(1)).tolist():
        path.write_bytes(whole[:position])
        refusal(path)
    for part in (b"weights", saved["weights"]["layers.0.bias"].numpy().tobytes()):
        position = whole.index(part) + 5
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        refusal(path)
    path.write_bytes(b"")
    refusal(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": 99}, "version 99"),
        ({"format_version": torch.zeros(2)}, "version"),
        ({"model": "resnet"}, "resnet"),
        ({"classes": None}, "classes"),
        ({"surprise": 1}, "surprise"),
        ({"optimizer": {}}, "history"),
        ({"classes": ["cat", "dog"]}, "classes"),
        ({"classes": ["\x1b[2J"] * 10}, "classes"),
        ({"epoch": 0}, "epoch"),
        ({"seconds": float("nan")}, "seconds"),
        ({"settings": {"epochs": -1}}, "epochs -1"),
        ({"settings": {"seed": "0"}}, "seed '0'"),
        ({"settings": {"schedule": "steps"}}, "'steps'"),
        ({"settings": {"augment": "no"}}, "'no'"),
        ({"settings": {"momentum": 0.9}}, "momentum"),
        ({"environment": {}}, "environment"),
        ({"environment": {"precision": "fp32", "threads": 10**400}}, "environment"),
        ({"environment": {"precision": "fp8"}}, "environment"),
        ({"weights": {"mean": "heavy"}}, "weights"),
        ({"dataset": "mni\nst"}, "dataset"),
        ({"epoch": "three"}, "epoch"),
        ({"weights": models.build("cnn2").state_dict()}, "don't fit"),
        ({"weights": {}}, "don't fit"),
        ({"weights": models.build("cnn1").state_dict() | {"mean": torch.zeros(4)}}, "don't fit"),
    ],
)
def test_invalid_checkpoint_is_rejected(tmp_path, changes, reason):
    saved = {name: value for name, value in (a_checkpoint() | changes).items() if value is not None}
    torch.save(saved, tmp_path / "best.pt")
    assert reason in refusal(tmp_path / "best.pt")


def test_checkpoint_too_large_for_memory_is_not_called_damaged(tmp_path, monkeypatch):
    def load(*arguments, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    torch.save(a_checkpoint(), tmp_path / "best.pt")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        runs.load_checkpoint(tmp_path / "best.pt")


def test_replacing_a_file_in_use_is_retried(tmp_path, monkeypatch):
    """As on Windows, while a virus scanner reads a new file."""

    def held(source, target):
        if not tries:
            return os_replace(source, target)
        tries.pop()
        raise PermissionError(13, "The process cannot access the file", source)

    tries, os_replace = [1, 2], os.replace
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(runs.os, "replace", held)
    runs.write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"
    tries += range(1000)
    with pytest.raises(PermissionError) as refused:
        runs.write_atomically(tmp_path / "file", b"other")
    assert refused.value.filename == str(tmp_path / "file") and (tmp_path / "file").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error", "disk"), RuntimeError("a bug")])
def test_failed_run_says_how_to_resume(call, monkeypatch, few_digits, capsys, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(evaluate, "evaluate_checkpoint", fail)
    options = ["--model", "cnn1", *DIGITS, "--epochs", 1, "--out-dir", "."]
    if isinstance(error, RuntimeError):
        with pytest.raises(RuntimeError):
            call(train.main, *options)
        err = capsys.readouterr().err
    else:
        code, out, err = call(train.main, *options)
        assert code == 2
    assert "Resume with:" in err and "--resume" in err
