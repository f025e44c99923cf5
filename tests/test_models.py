import dataclasses
import hashlib
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

import models
import runs
from recipe import Recipe

IMAGES = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# Each number is the sum over the layers as the README lists them.
@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [
        ("dense", 1_707_274, 3072 * 512 + 512 * 256 + 256 * 10),
        ("cnn1", 1_050_890, 32**2 * 27 * 32 + 8192 * 128 + 128 * 10),
        ("cnn2", 545_098, 32**2 * 27 * 32 + 16**2 * 288 * 64 + 4096 * 128 + 128 * 10),
        (
            "vgg",
            2_197_706,
            32**2 * (27 + 576) * 64 + 16**2 * (576 + 1152) * 128 + 8**2 * (1152 + 2304) * 256 + 4096 * 256 + 2560,
        ),
        (
            "vgg_fast",
            3_151_392,
            31**2 * (12 + 9 * 96) * 24
            + 15**2 * 864 * (96 + 320)
            + 7**2 * 2880 * (320 + 320)
            + 3**2 * 2880 * 320
            + 3200,
        ),
    ],
)
def test_networks_give_probabilities_and_have_the_described_size(name, parameters, multiply_adds):
    model = models.build(name).eval()
    model.adapt(IMAGES)
    assert models.count_parameters(model) == parameters
    assert models.multiply_adds(model) == multiply_adds
    probabilities = model(IMAGES)
    assert probabilities.shape == (7, 10) and probabilities.dtype == torch.float32
    assert (probabilities >= 0).all()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(7))
    torch.testing.assert_close(probabilities, torch.softmax(model.logits(IMAGES), dim=1))


def test_network_normalises_its_input_per_channel():
    pixels = IMAGES.double()
    std, mean = torch.std_mean(pixels, dim=(0, 2, 3), correction=0, keepdim=True)
    model = models.build("cnn1")
    expected = model.logits(((pixels - mean) / std).float())
    model.adapt(IMAGES)
    torch.testing.assert_close(model.logits(IMAGES), expected)


def test_first_layer_of_vgg_fast_whitens_patches():
    grey = torch.randint(0, 256, (500, 1, 16, 16), dtype=torch.uint8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = (grey.expand(-1, 3, -1, -1) // 2) + torch.randint(0, 128, (500, 3, 32, 32), dtype=torch.uint8)
    model = models.build("vgg_fast")
    model.adapt(images)
    with torch.no_grad():
        outputs = model.layers[0]((images - model.mean) / model.std).transpose(0, 1).flatten(1)
    torch.testing.assert_close(outputs[:12], -outputs[12:])
    torch.testing.assert_close(outputs[:12].cov(), torch.eye(12), atol=0.02, rtol=0)
    assert not model.layers[0].weight.requires_grad


def test_convolutions_of_vgg_fast_start_as_identities():
    model = models.build("vgg_fast")
    convolutions = [layer for layer in model.layers if isinstance(layer, torch.nn.Conv2d)]
    for layer in convolutions[1:]:
        channels = layer.in_channels
        values = torch.rand(2, channels, 15, 15)
        torch.testing.assert_close(layer(values)[:, :channels], values)


def test_channel_statistics_are_those_of_numpy():
    images = torch.randint(0, 256, (2500, 3, 8, 8), dtype=torch.uint8)
    mean, std = models.channel_statistics(images)
    np.testing.assert_allclose(mean, images.numpy().mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(std, images.numpy().std(axis=(0, 2, 3)))


def a_checkpoint(**changes):
    model = models.build("cnn1")
    model.adapt(IMAGES)
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
    runs.save_checkpoint(tmp_path / "best.pt", saved)
    model, checkpoint = models.load_model(tmp_path / "best.pt")
    assert checkpoint["epoch"] == 3 and checkpoint["classes"][9] == "9"
    for name, tensor in saved["weights"].items():
        assert torch.equal(model.state_dict()[name], tensor), name
    # It stays a file that torch.load reads, without this project.
    assert torch.load(tmp_path / "best.pt", weights_only=True)["model"] == "cnn1"


def refusal(path):
    with pytest.raises(runs.CheckpointError) as refused:
        models.load_model(path)
    message = str(refused.value)
    assert str(path) in message and "\n" not in message
    return message


class Hostile:
    def __reduce__(self):
        return open, ("ran.txt", "w")


def with_checksum(content):
    """What an attacker, too, can do: give a foreign zip archive the checksum of this project's checkpoints."""
    content = content[:-2] + (64).to_bytes(2, "little")
    return content + hashlib.sha256(content).hexdigest().encode()


def test_hostile_checkpoint_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hostile = a_checkpoint(settings=Hostile())
    archive = io.BytesIO()
    torch.save(hostile, archive)
    with zipfile.ZipFile(io.BytesIO(archive.getvalue())) as names:
        assert any(name.endswith("data.pkl") for name in names.namelist())
    for content in (pickle.dumps(hostile), archive.getvalue(), with_checksum(archive.getvalue())):
        (tmp_path / "best.pt").write_bytes(content)
        refusal(tmp_path / "best.pt")
        assert not (tmp_path / "ran.txt").exists()
    torch.load(tmp_path / "best.pt", weights_only=False)
    assert (tmp_path / "ran.txt").exists(), "the file would run code if it were let"


def test_damaged_checkpoint_is_noticed(tmp_path):
    path = tmp_path / "best.pt"
    runs.save_checkpoint(path, a_checkpoint())
    whole = path.read_bytes()
    random = torch.Generator().manual_seed(1)
    for position in torch.randint(0, len(whole), (20,), generator=random).tolist():
        path.write_bytes(whole[:position])
        refusal(path)
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
        ({"weights": models.build("cnn1").state_dict() | {"mean": torch.full((3, 1, 1), torch.nan)}}, "weights"),
        ({"weights": {"mean": "heavy"}}, "weights"),
        ({"dataset": "mni\nst"}, "dataset"),
        ({"epoch": "three"}, "epoch"),
        ({"weights": models.build("cnn2").state_dict()}, "don't fit"),
        ({"weights": {}}, "don't fit"),
        ({"weights": models.build("cnn1").state_dict() | {"mean": torch.zeros(4)}}, "don't fit"),
    ],
)
def test_checkpoint_of_another_kind_is_refused(tmp_path, changes, reason):
    runs.save_checkpoint(tmp_path / "best.pt", a_checkpoint(**changes))
    assert reason in refusal(tmp_path / "best.pt")


def test_older_checkpoint_gets_the_settings_that_it_lacks(tmp_path):
    runs.save_checkpoint(tmp_path / "best.pt", a_checkpoint(settings={"seed": 3}))
    settings = runs.load_checkpoint(tmp_path / "best.pt")["settings"]
    assert settings == dataclasses.asdict(Recipe(seed=3)) and settings["optimizer"] == "adamw"


def test_checkpoint_that_does_not_fit_into_memory_is_not_called_foreign(tmp_path, monkeypatch):
    def load(*arguments, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    runs.save_checkpoint(tmp_path / "best.pt", a_checkpoint())
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        runs.load_checkpoint(tmp_path / "best.pt")


def test_checkpoint_without_an_entry_is_refused(tmp_path):
    checkpoint = a_checkpoint()
    del checkpoint["classes"]
    runs.save_checkpoint(tmp_path / "best.pt", checkpoint)
    assert "classes" in refusal(tmp_path / "best.pt")


def test_failed_write_leaves_the_former_file_and_nothing_else(tmp_path, monkeypatch):
    runs.write_atomically(tmp_path / "file", b"former")
    monkeypatch.setattr(runs.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError) as full:
        runs.write_atomically(tmp_path / "file", b"new")
    assert full.value.filename == str(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"former"
