import dataclasses
import io
import os
import pickle
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


def test_target_loss_can_be_removed(call, tmp_path):
    quick(call, "--target-loss", "100", "--out-dir", ".", "--run-name", "run")
    assert "epoch" not in quick(call, "--out-dir", ".", "--run-name", "run", "--resume")[1].partition("best.pt")[0]
    out = quick(call, "--out-dir", ".", "--run-name", "run", "--resume", "--target-loss", "off")[1]
    assert "epoch 2/2" in out
    assert runs.load_checkpoint(tmp_path / "run/last.pt").recipe.target_loss is None


def test_best_checkpoint_of_another_run_is_rejected(call, tmp_path):
    quick(call, "--out-dir", ".", "--run-name", "other", epochs=1)
    quick(call, "--out-dir", ".", "--run-name", "run", epochs=2)
    last = runs.load_checkpoint(tmp_path / "run/last.pt")
    last.history[0]["validation_accuracy"] = 1.0  # the first epoch is the best: last.pt doesn't hold it
    runs.save_checkpoint(tmp_path / "run/last.pt", last)
    (tmp_path / "run/best.pt").write_bytes((tmp_path / "other/best.pt").read_bytes())
    code, out, err = quick(call, "--out-dir", ".", "--run-name", "run", "--resume", epochs=3, code=2)
    assert "best.pt doesn't belong to the run in" in err and "--overwrite" in err and len(err.splitlines()) == 1


def test_resume_restores_files_that_a_kill_left_an_epoch_behind(call, tmp_path):
    """last.pt is written first; best.pt and history.csv may be from the previous epoch, or from the previous run."""
    quick(call, "--out-dir", ".", "--run-name", "other", epochs=1)
    quick(call, "--out-dir", ".", "--run-name", "run", epochs=2)
    whole = (tmp_path / "run/best.pt").read_bytes(), (tmp_path / "run/history.csv").read_bytes()
    for name in ("best.pt", "history.csv"):
        (tmp_path / "run" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert "epoch 1/2" not in quick(call, "--out-dir", ".", "--run-name", "run", "--resume", epochs=2)[1]
    assert runs.load_checkpoint(tmp_path / "run/best.pt").epoch == 2
    assert_same_weights(tmp_path / "run/best.pt", tmp_path / "run/last.pt")
    assert (tmp_path / "run/history.csv").read_bytes() == whole[1]


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
def test_invalid_state_is_not_resumed_and_prints_one_line(call, tmp_path, few_digits, damage):
    quick(call, "--out-dir", ".", epochs=1)
    last = tmp_path / "cnn1/last.pt"
    runs.save_checkpoint(last, dataclasses.replace(runs.load_checkpoint(last), **damage))
    code, out, err = quick(call, "--out-dir", ".", "--resume", code=2)
    assert len(err.splitlines()) == 1


def test_resume_continues_a_finished_run_with_more_epochs_and_its_own_settings(call, tmp_path):
    common = ["--seed", "5", "--augment", "--out-dir", "."]
    quick(call, *common, "--run-name", "four", epochs=4)
    quick(call, *common, epochs=2)
    quick(call, "--out-dir", ".", "--resume", epochs=4)
    assert_same_weights(tmp_path / "four/last.pt", tmp_path / "cnn1/last.pt")
    assert "epoch 4/4" not in quick(call, "--out-dir", ".", "--resume", epochs=4)[1]


def test_resume_fills_in_settings_that_older_versions_did_not_save(call, two_epochs, tmp_path):
    quick(call, "--out-dir", ".", epochs=1)
    last = tmp_path / "cnn1/last.pt"
    for path in (last, tmp_path / "cnn1/best.pt"):
        saved = torch.load(path, weights_only=True)
        for name in ("optimizer", "label_smoothing"):
            del saved["settings"][name]
        torch.save({name: value for name, value in saved.items() if name != "run_id"}, path)
    quick(call, "--out-dir", ".", "--resume", "--label-smoothing", "0.1", epochs=2, code=2)
    quick(call, "--out-dir", ".", "--resume", epochs=2)
    assert history_without_seconds(tmp_path / "cnn1") == history_without_seconds(two_epochs)


def test_linear_schedule_can_not_be_extended(call, tmp_path, few_digits):
    options = ["--schedule", "linear", "--out-dir", "."]
    quick(call, *options, epochs=1)
    assert "epochs 1, not 2" in quick(call, *options, "--resume", epochs=2, code=2)[2]


def test_extended_run_is_unfinished_until_it_is_evaluated_again(call, tmp_path, monkeypatch):
    quick(call, "--out-dir", ".", epochs=1)
    with monkeypatch.context() as evaluation:
        evaluation.setattr(evaluate, "evaluate_checkpoint", interrupted)
        quick(call, "--out-dir", ".", "--resume", epochs=2, code=130)
    assert "unfinished" in quick(call, "--out-dir", ".", epochs=2, code=2)[2]
    assert "less" in quick(call, "--out-dir", ".", "--resume", epochs=1, code=2)[2]
    quick(call, "--out-dir", ".", "--resume", epochs=2)


def test_stopped_run_can_be_ended_at_its_current_epoch(call, tmp_path, monkeypatch):
    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "print_epoch", interrupted)
        quick(call, "--out-dir", ".", epochs=3, code=130)
    quick(call, "--out-dir", ".", "--resume", epochs=1)
    quick(call, "--out-dir", ".", epochs=1)  # it is finished, so a new run may replace it


def test_replaced_run_leaves_no_files_behind(call, tmp_path, monkeypatch, few_digits):
    options = ["--out-dir", ".", "--run-name", "run"]
    quick(call, *options, epochs=1)
    with monkeypatch.context() as first_step:
        interrupt_call(first_step, train, "train_step", 1)
        err = quick(call, *options, model="dense", code=130)[2]
    assert "start again with the same command" in err and "--resume" not in err
    with monkeypatch.context() as first_epoch:
        first_epoch.setattr(train, "print_epoch", interrupted)
        quick(call, *options, model="dense", code=130)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".lock",
        "best.pt",
        "last.pt",
        "history.csv",
        "loss_plot.png",
    }


def test_full_disk_at_the_first_save_keeps_the_previous_best(call, tmp_path, monkeypatch):
    quick(call, "--out-dir", ".", epochs=1)
    previous = (tmp_path / "cnn1/best.pt").read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(runs.os, "fsync", full)
        assert "last.pt: No space left" in quick(call, "--out-dir", ".", "--seed", "1", epochs=1, code=2)[2]
    assert (tmp_path / "cnn1/best.pt").read_bytes() == previous


def test_finished_run_is_replaced_but_an_unfinished_one_only_with_overwrite(call, tmp_path):
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


def test_two_runs_never_share_a_folder(call, tmp_path):
    with runs.claim_folder(tmp_path / "outs/digits/cnn1"):
        for options in ([], ["--overwrite"]):
            code, out, err = quick(call, *options, code=2)
            assert "another process is writing" in err and len(err.splitlines()) == 1
    quick(call, epochs=1)


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
def test_run_is_not_resumed_with_other_settings(call, tmp_path, options, reason):
    quick(call, "--out-dir", ".", "--run-name", "run", epochs=1)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    code, out, err = call(train.main, *options, "--out-dir", ".", "--run-name", "run", "--resume")
    assert code == 2 and reason in err and len(err.splitlines()) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_damaged_or_stateless_checkpoints_are_not_resumed(call, tmp_path):
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
        if len(calls) > 4:  # in the second epoch: calls 1 to 3 are in the first
            raise OSError(28, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as disk:
        disk.setattr(runs.os, "fsync", full)
        code, out, err = quick(call, "--out-dir", ".", epochs=3, code=2)
    assert "No space left" in err and "cnn1" in err and "--resume" in err and "Traceback" not in err
    assert not list(tmp_path.rglob("*.tmp"))
    assert runs.load_checkpoint(tmp_path / "cnn1/last.pt").epoch >= 1
    quick(call, "--out-dir", ".", "--resume", epochs=3)
    assert_same_weights(tmp_path / "whole/last.pt", tmp_path / "cnn1/last.pt")


def test_disk_that_fills_up_while_a_checkpoint_is_written(call, tmp_path):
    """A limit on the file size acts like a disk that is full in the middle of a checkpoint."""
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    options = ["--model", "cnn2", *DIGITS, "--out-dir", "."]
    assert call(train.main, *options, "--epochs", 2, "--run-name", "whole")[0] == 0
    assert call(train.main, *options, "--epochs", 1)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "cnn2").glob("*.pt")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        code, _, err = call(train.main, *options, "--epochs", 2, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "cnn2/best.pt: File too large" in err and "Traceback" not in err
    assert {path.name: path.read_bytes() for path in (tmp_path / "cnn2").glob("*.pt")} == before
    assert not list(tmp_path.rglob("*.tmp"))
    assert call(train.main, *options, "--epochs", 2, "--resume")[0] == 0
    assert_same_weights(tmp_path / "whole/last.pt", tmp_path / "cnn2/last.pt")


def a_checkpoint(**changes):
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
    } | changes


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
    hostile = a_checkpoint(settings=Hostile())
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
    torch.save(a_checkpoint(**changes), tmp_path / "best.pt")
    assert reason in refusal(tmp_path / "best.pt")


def test_older_checkpoint_gets_defaults_for_missing_settings(tmp_path):
    torch.save(a_checkpoint(settings={"seed": 3}), tmp_path / "best.pt")
    assert runs.load_checkpoint(tmp_path / "best.pt").recipe == Recipe(seed=3)


def test_checkpoint_too_large_for_memory_is_not_called_damaged(tmp_path, monkeypatch):
    def load(*arguments, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    torch.save(a_checkpoint(), tmp_path / "best.pt")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        runs.load_checkpoint(tmp_path / "best.pt")


def test_checkpoint_with_a_missing_entry_is_rejected(tmp_path):
    checkpoint = a_checkpoint()
    del checkpoint["classes"]
    torch.save(checkpoint, tmp_path / "best.pt")
    assert "classes" in refusal(tmp_path / "best.pt")


def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    runs.write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(runs.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError) as full:
        runs.write_atomically(tmp_path / "file", b"new")
    assert full.value.filename == str(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


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
