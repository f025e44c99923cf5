import os
import shutil
import subprocess
import sys

import pytest

import evaluate
import experiments.dataset_example
import plots
import runs
from conftest import ROOT

FURTHER = (
    "comparison.png",
    "calibrations.png",
    "recall.png",
    "robustness.png",
    "robustness_examples.png",
    "plot_dataset_example.png",
)


@pytest.mark.pictures
def test_pictures_are_redrawn_from_the_files_alone(finished_run, call, tmp_path):
    shutil.copytree(finished_run("cnn2")[0].parent, tmp_path / "outs")
    evaluate.compare([tmp_path / "outs" / "cnn2"] * 2, tmp_path / "outs")
    call(evaluate.main, "--robustness", "outs/cnn2/best.pt")
    call(experiments.dataset_example.main, "--dataset", "digits", "--folder", "outs")
    drawn = {path: path.read_bytes() for path in (tmp_path / "outs").rglob("*.png")}
    names = {path.name for path in drawn}
    assert names == {*runs.pictures_of_a_run(), *FURTHER}
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values())
    for path in drawn:
        path.unlink()
    for checkpoint in (tmp_path / "outs").rglob("*.pt"):
        checkpoint.unlink()
    code, out, err = call(plots.main, "outs")
    assert code == 0 and err == ""
    assert {path: path.read_bytes() for path in (tmp_path / "outs").rglob("*.png")} == drawn


@pytest.mark.pictures
def test_nothing_to_draw_is_said_in_one_line(call, tmp_path):
    code, out, err = call(plots.main, "nowhere")
    assert code == 2 and len(err.splitlines()) == 1 and "nowhere" in err
    for name in ("metrics.json", "plot_dataset_example.npz"):
        (tmp_path / name).write_text("{")
        code, out, err = call(plots.main, tmp_path)
        assert code == 2 and len(err.splitlines()) == 1 and name in err
        (tmp_path / name).unlink()


@pytest.mark.pictures
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comparison.csv", "model,parameters\n"),
        ("recall.csv", 'model,class,recall\ncnn2,cat,"0,5"\n'),
        ("recall.csv", "model,class\ncnn2,cat\n"),
        ("recall.csv", "model,class,recall\ndense,cat,0.5\ncnn2,cat,0.6\ncnn2,dog,0.7\n"),
    ],
    ids=["no row", "no number", "no column", "a class of one network alone"],
)
def test_damaged_results_are_not_drawn(call, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    code, out, err = call(plots.main, ".")
    assert code == 2 and f"{name} is damaged" in err and len(err.splitlines()) == 1
    assert not (tmp_path / name).with_suffix(".png").exists()


@pytest.mark.pictures
@pytest.mark.parametrize("name", ["seeds/seeds", "ablation/effects", "exercise_04/curves"])
def test_pictures_of_experiments_are_redrawn(call, tmp_path, name):
    shutil.copy(ROOT / "outs" / f"{name}.csv", tmp_path)
    assert call(plots.main, ".")[0] == 0
    assert (tmp_path / f"{name.partition('/')[2]}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.pictures
def test_a_single_row_can_be_drawn(call, tmp_path):
    (tmp_path / "recall.csv").write_text("model,class,recall\ncnn2,cat,0.5\n")
    assert call(plots.main, ".")[0] == 0 and (tmp_path / "recall.png").exists()


@pytest.mark.slow
def test_pictures_are_the_same_whatever_a_matplotlibrc_says(tmp_path):
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\n")
    environment = os.environ | {"MATPLOTLIBRC": str(tmp_path)}
    program = "import plots, matplotlib; print(matplotlib.rcParams['axes.facecolor'])"
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "white\n"
