import json
import shutil

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

import corruptions
import evaluate
import experiments.dataset_example
import plots
import runs
from experiments import CURVES, EFFECTS, EXAMPLES, SEEDS, pictures

CLASSES = [f"class {number}" for number in range(10)]
TEN_RUNS = [f"vgg_without_part_{number}" for number in range(10)]


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run folder, without its pictures."""
    return shutil.copytree(finished_run("cnn1")[0], tmp_path / "run", ignore=shutil.ignore_patterns("*.png"))


# Write a history, a comparison and results of experiments, in the format of the real ones.


def write_history(folder, accuracies=(0.4, 0.6, 0.5), losses=(1.5, 1.1, 1.2)):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"epoch": epoch, "train_loss": loss, "train_accuracy": accuracy, "validation_loss": loss}
        | {"validation_accuracy": accuracy, "learning_rate": 1e-3, "seconds": 1.5}
        for epoch, (accuracy, loss) in enumerate(zip(accuracies, losses), 1)
    ]
    runs.write_atomically(folder / "history.csv", runs.csv_bytes(rows))


def write_comparison(folder, names=("cnn1", "cnn2"), accuracies=(0.6, 0.7), multiply_adds=(2e6, 6e6)):
    folder.mkdir(parents=True, exist_ok=True)
    models = list(zip(names, accuracies, multiply_adds))
    write_rows(
        folder / "comparison.csv",
        [
            {"model": name, "multiply_adds": cost, "train_accuracy": accuracy + 0.03, "test_accuracy": accuracy}
            | {"interval_low": accuracy - 0.01, "interval_high": accuracy + 0.01}
            for name, accuracy, cost in models
        ],
    )
    write_rows(
        folder / "recall.csv",
        [{"model": name, "class": label, "recall": accuracy} for name, accuracy, _ in models for label in CLASSES],
    )
    write_rows(
        folder / "calibrations.csv",
        [
            {"model": name, "when": when, "temperature": 1.3, "expected_calibration_error": 0.05}
            | {"samples": 100, "confidence": share, "accuracy": share - 0.05}
            for name in names
            for when in ("before", "after")
            for share in (0.5, 0.7, 0.9)
        ],
    )
    write_rows(
        folder / "robustness.csv",
        [
            {"model": name, "transformation": kind, "amount": amount, "test_accuracy": accuracy}
            for kind, each in corruptions.CORRUPTIONS.items()
            for name, accuracy, _ in models
            for amount in (0, *each.amounts)
        ],
    )
    images = np.zeros((3, 3, 32, 32), np.uint8)
    runs.write_arrays(
        folder / "robustness_examples.npz", images=images, kinds=["none", "shift", "jpeg"], amounts=[0, 4, 50]
    )


def write_experiments(folder, names=("cnn1", "cnn2")):
    folder.mkdir(parents=True, exist_ok=True)
    curves = [*names, pictures.TRUE_LOSS_CURVE, pictures.OWN_LOSS_CURVE]
    write_rows(
        folder / CURVES,
        [
            {"curve": name, "epoch": epoch, "validation_loss": 1 / epoch, "validation_accuracy": 0.1 * epoch}
            for name in curves
            for epoch in (1, 2, 3)
        ],
    )
    seeds = [{"run": "cnn2", "seed": seed, "best_epoch": 9, "validation_accuracy": 0.7} for seed in range(3)]
    write_rows(folder / SEEDS, [row | {"test_accuracy": 0.7 + 0.03 * row["seed"]} for row in seeds])
    rows = [{"variant": "wider", "baseline": "cnn2", "seeds": 3, "difference": 0.02, "low": 0.01, "high": 0.03}]
    write_rows(folder / EFFECTS, [*rows, {**rows[0], "variant": "deeper", "low": -0.01}])
    runs.write_arrays(folder / EXAMPLES, images=np.zeros((10, 10, 3, 32, 32), np.uint8), classes=CLASSES)


def write_rows(path, rows):
    runs.write_atomically(path, runs.csv_bytes(rows))


def drawn(folder):
    return {path.name for path in folder.rglob("*.png")}


@pytest.fixture
def figures(monkeypatch):
    """Instead of writing pictures, collect the figures in a dict by file name. This skips the layout, which takes most
    of the time."""
    figures = {}
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.update({path.name: figure}))
    return figures


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.pictures
@pytest.mark.filterwarnings("error")
def test_every_picture_is_drawn_from_its_file(run, call, tmp_path):
    (tmp_path / "outs").mkdir()
    run.rename(tmp_path / "outs" / "cnn1")
    write_comparison(tmp_path / "outs")
    write_experiments(tmp_path / "outs")
    write_history(tmp_path / "outs" / "stopped")
    code, out, err = call(plots.main, "outs")
    assert code == 0 and err == "" and "outs/cnn1/metrics.json" in out and "outs/recall.csv" in out
    assert "stopped/history.csv" in out and drawn(tmp_path / "outs" / "stopped") == {"loss_plot.png"}
    names = {"comparison.png", "recall.png", "calibrations.png", "robustness.png", "robustness_examples.png"}
    assert drawn(tmp_path) == {*runs.pictures_of_a_run()} | names
    assert call(pictures.main)[0] == 0
    names |= {name.rpartition(".")[0] + ".png" for name in (EXAMPLES, CURVES, SEEDS, EFFECTS)}
    assert drawn(tmp_path) == {*runs.pictures_of_a_run()} | names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.rglob("*.png"))


@pytest.mark.slow
@pytest.mark.pictures
def test_pictures_are_redrawn_from_the_files_alone(finished_run, call, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(finished_run("cnn1")[0], tmp_path / "outs" / name)
    assert call(evaluate.main, "outs/first/best.pt", "outs/second/best.pt")[0] == 0
    assert call(evaluate.main, "--robustness", "outs/first/best.pt")[0] == 0
    assert call(experiments.dataset_example.main, "--dataset", "digits", "--folder", "outs")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "outs").rglob("*.png")}
    assert all(picture.startswith(b"\x89PNG") for picture in before.values())
    for path in [*before, *(tmp_path / "outs").rglob("*.pt")]:
        path.unlink()
    for main in (plots.main, pictures.main):
        assert call(main, "outs")[0] == 0
    assert {path: path.read_bytes() for path in (tmp_path / "outs").rglob("*.png")} == before


@pytest.mark.parametrize("main", [plots.main, pictures.main])
def test_nothing_to_draw_is_reported_in_one_line(call, main):
    code, out, err = call(main, "nowhere")
    assert code == 2 and len(err.splitlines()) == 1 and "no results under nowhere" in err


@pytest.mark.pictures
def test_the_best_epoch_of_an_unfinished_run_comes_from_its_history(tmp_path, figures):
    write_history(tmp_path / "cnn2", accuracies=[0.5, 0.6, 0.6, 0.6, 0.4], losses=[1.0, 0.9, 0.7, 0.8, 0.5])
    plots.draw_run(tmp_path / "cnn2")
    assert figures.keys() == {"loss_plot.png"}
    figure = figures["loss_plot.png"]
    assert figure.get_suptitle() == "cnn2: training and validation by epoch, up to epoch 5"
    names = ["training", "validation", "lowest validation loss: epoch 5", "best epoch, by validation accuracy: 3"]
    assert legend_of(figure) == names
    (tmp_path / "cnn2/metrics.json").write_text("{")
    with pytest.raises(runs.ResultsError, match="is damaged"):
        plots.draw_loss(tmp_path / "cnn2")


@pytest.mark.pictures
def test_a_single_epoch_is_visible(tmp_path, figures):
    write_history(tmp_path, accuracies=[0.5], losses=[1.0])
    plots.draw_loss(tmp_path)
    for axes in figures["loss_plot.png"].axes:
        assert [line.get_marker() for line in axes.lines[:2]] == [".", "."]
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


@pytest.mark.pictures
def test_the_curve_of_a_finished_run_says_what_it_was_trained_on(run, figures):
    change_metrics("settings", value={"augment": True, "skip_easy": 0.5})(run)
    plots.draw_loss(run)
    figure = figures["loss_plot.png"]
    assert legend_of(figure)[0] == "training (augmented, mostly hard)"
    assert "up to" not in figure.get_suptitle()


def test_ten_runs_are_drawn_differently():
    assert len({tuple(style.items()) for style in plots.RUN_STYLES}) == 10
    assert len({style["marker"] for style in plots.RUN_STYLES}) == 10, "in greyscale"
    assert len({(style["color"], style["linestyle"]) for style in plots.RUN_STYLES}) == 10
    styles = plots.run_styles(["worst", *TEN_RUNS])
    assert styles[TEN_RUNS[-1]]["marker"] == "o" and styles[TEN_RUNS[0]]["marker"] == "*"
    assert styles["worst"] == plots.RUN_STYLES[0], "the eleventh has the first style again"


@pytest.mark.pictures
@pytest.mark.filterwarnings("error")
def test_names_of_ten_runs_fit(tmp_path, figures):
    write_comparison(tmp_path, TEN_RUNS, np.linspace(0.94, 0.95, 10), [1e8] * 5 + [2e8] * 5)
    write_experiments(tmp_path, TEN_RUNS)
    for draw in (plots.draw_comparison, plots.draw_recall, plots.draw_robustness, pictures.draw_curves):
        draw(tmp_path)
    for name, figure in figures.items():
        FigureCanvasAgg(figure).draw()
        legend = figure.legends[0].get_window_extent()
        assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width, name
        assert {*legend_of(figure)} >= {*TEN_RUNS} or name == "comparison.png"
        assert all(legend.y0 >= axes.get_window_extent().y1 - 1 for axes in figure.axes), name
        assert all(axes.get_window_extent().height > figure.bbox.height / 4 for axes in figure.axes), name
    figure = figures["comparison.png"]
    places = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the line to the point
    assert [text.get_text() for text in figure.axes[0].texts] == [
        f"{name} {accuracy:.1%}" for name, accuracy in zip(TEN_RUNS, np.linspace(0.94, 0.95, 10))
    ]
    for number, place in enumerate(places):
        assert place.x1 <= figure.bbox.width and not place.count_overlaps(places[:number])


@pytest.mark.pictures
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("comparison.csv", "model,parameters\n"),
        ("recall.csv", 'model,class,recall\ncnn2,cat,"0,5"\n'),
        ("recall.csv", "model,class\ncnn2,cat\n"),
        ("recall.csv", "model,class,recall\ndense,cat,0.5\ncnn2,cat,0.6\ncnn2,dog,0.7\n"),
        ("recall.csv", "model,class,recall\ndense,cat,0.5\ndense,dog,0.6\ncnn2,cat,0.7\n"),
        ("recall.csv", "model,class,recall\ndense,cat,nan\n"),
        ("robustness.csv", "model,transformation,amount,test_accuracy\ncnn1,blur,0,0.6\ncnn2,jpeg,0,0.7\n"),
        ("metrics.json", "{"),
        ("history.csv", "epoch,train_loss\n1\n"),
    ],
)
def test_damaged_results_are_not_drawn(call, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    code, out, err = call(plots.main, ".")
    assert code == 2 and f"{name} is damaged" in err and len(err.splitlines()) == 1
    assert not drawn(tmp_path)


def change_metrics(*keys, value):
    def damage(folder):
        metrics = place = json.loads((folder / "metrics.json").read_text())
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        (folder / "metrics.json").write_text(json.dumps(metrics))

    return damage


def change_array(file, name, change):
    def damage(folder):
        with np.load(folder / file) as saved:
            arrays = dict(saved)
        runs.write_arrays(folder / file, **arrays | {name: change(arrays[name])})

    return damage


def change_history(column, value):
    def damage(folder):
        rows = runs.read_rows(folder / "history.csv")
        rows[1][column] = value
        write_rows(folder / "history.csv", rows)

    return damage


CONFUSION, TABLE = "confusion_matrix_test.png", "metrics_test.png"
DAMAGES = [
    (change_metrics("test", "accuracy", value="0.7"), {CONFUSION, TABLE}),
    (change_metrics("test", "accuracy", value=None), {CONFUSION, TABLE}),
    (change_metrics("test", "samples", value="all"), {CONFUSION, TABLE, "calibration.png"}),
    (change_metrics("test", "confusion_matrix", 0, value=[1, 2]), {CONFUSION}),
    (change_metrics("test", "confusion_matrix", 0, 0, value="many"), {CONFUSION}),
    (change_metrics("test", "confusion_matrix", value=[]), {CONFUSION}),
    (change_metrics("test", "confusion_matrix", value=[[1, 2], [3, 4]]), {CONFUSION}),
    (change_metrics("test", "per_class", value={"cat": {}}), {CONFUSION, TABLE}),
    (change_metrics("test", "macro", value=None), {TABLE}),
    (change_metrics("test", "accuracy_interval", value=[0.5]), {TABLE}),
    (change_metrics("test", "calibration_bins", value=None), {"calibration.png"}),
    (change_metrics("test", "calibration_bins", -1, "confidence", value=None), {"calibration.png"}),
    (change_metrics("test", "expected_calibration_error", value=[]), {"calibration.png"}),
    (change_metrics("best_epoch", value="2"), {"loss_plot.png"}),
    (change_metrics("best_epoch", value=0), {"loss_plot.png"}),
    (change_history("train_loss", "1e308"), {"loss_plot.png"}),
    (change_history("validation_accuracy", "-1e308"), {"loss_plot.png"}),
    (change_history("validation_loss", "nan"), {"loss_plot.png"}),
    (change_array("mistakes.npz", "images", lambda images: images[0]), {"mistakes.png"}),
    (change_array("mistakes.npz", "labels", lambda labels: labels + 50), {"mistakes.png"}),
    (change_array("mistakes.npz", "probabilities", lambda all: all[:, 0]), {"mistakes.png"}),
    (change_array("random_predictions.npz", "classes", lambda classes: classes[:2]), {"random_predictions.png"}),
    (change_array("inside.npz", "occlusion", lambda occlusion: occlusion[0]), {"inside.png"}),
    (change_array("inside.npz", "block_1", lambda maps: maps[:3]), {"inside.png"}),
    (change_array("inside.npz", "blocks", lambda blocks: np.array("two")), {"inside.png"}),
    (change_array("filters.npz", "weights", lambda weights: weights[0]), {"filters.png"}),
    (change_array("filters.npz", "start", lambda start: start[:5]), {"filters.png"}),
]


@pytest.mark.pictures
@pytest.mark.parametrize(("damage", "missing"), DAMAGES)
@pytest.mark.filterwarnings("error")
def test_a_damaged_value_affects_only_the_pictures_that_show_it(run, figures, monkeypatch, damage, missing):
    def save(figure, path):
        if path.name in missing:
            FigureCanvasAgg(figure).draw()
        figures[path.name] = figure

    monkeypatch.setattr(plots, "save", save)
    monkeypatch.setattr(runs, "SPLITS", ("test",))  # the others would only take time
    damage(run)
    with pytest.raises(runs.ResultsError) as raised:
        plots.draw_run(run)
    assert {*runs.pictures_of_a_run()} - figures.keys() == missing
    lines = str(raised.value).splitlines()
    assert len(lines) == len(missing)
    for name in missing:
        assert any(str(run) in line and "is damaged" in line and f"can't draw {name}" in line for line in lines)
    assert raised.value.__cause__


@pytest.mark.pictures
def test_a_damaged_run_does_not_stop_the_others(run, call, tmp_path, figures):
    for name in ("first", "second"):
        shutil.copytree(run, tmp_path / name)
    write_comparison(tmp_path)
    change_metrics("test", "macro", value=None)(tmp_path / "first")
    (tmp_path / "second/metrics.json").unlink()
    (tmp_path / "second/metrics.json").mkdir()  # can't be read
    code, out, err = call(plots.main, ".")
    assert code == 2
    damaged, unreadable = err.splitlines()
    assert "first/metrics.json is damaged: can't draw metrics_test.png" in damaged
    assert "second/metrics.json: Is a directory" in unreadable
    assert "run/metrics.json" in out and "comparison.csv" in out and "first" not in out
    assert figures.keys() >= {*runs.pictures_of_a_run(), "recall.png"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_errors_other_than_damage_are_passed_on(tmp_path, monkeypatch, error):
    def save(figure, path):
        raise error

    monkeypatch.setattr(plots, "save", save)
    write_comparison(tmp_path)
    with pytest.raises(type(error) if isinstance(error, OSError) else error) as raised:
        plots.draw_all([(plots.draw_recall, tmp_path), (plots.draw_comparison, tmp_path)])
    assert not isinstance(raised.value, runs.ResultsError)


@pytest.mark.pictures
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "shape", [(32, 1, 3, 3), (3, 3, 5, 5), (8, 3, 1, 1), (8, 3, 1, 7), (8, 3, 64, 64)], ids=lambda shape: str(shape)
)
def test_kernels_of_any_size_are_drawn(tmp_path, figures, shape):
    start, weights = np.random.default_rng(0).normal(size=(2, *shape))
    runs.write_arrays(tmp_path / "filters.npz", start=start, weights=weights)
    plots.draw_filters(tmp_path)
    for axes in figures["filters.png"].axes:
        picture = axes.images[0].get_array()
        assert np.ptp(picture) > 0.5
        assert shape[1] == 3 or np.ptp(picture, axis=2).max() == 0, "grey"


@pytest.mark.pictures
def test_kernels_with_four_channels_are_not_drawn(tmp_path, figures):
    runs.write_arrays(tmp_path / "filters.npz", start=np.ones((8, 4, 3, 3)), weights=np.zeros((8, 4, 3, 3)))
    plots.draw_run(tmp_path)
    assert not figures


@pytest.mark.pictures
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("maps", [np.zeros((6, 1, 16, 16)), np.zeros((6, 3, 16, 8))], ids=["one", "not square"])
def test_few_or_oblong_feature_maps_are_drawn(run, figures, maps):
    change_array("inside.npz", "block_1", lambda _: maps)(run)
    plots.draw_inside(run)
    assert "inside.png" in figures


@pytest.mark.pictures
def test_a_single_row_can_be_drawn(call, tmp_path):
    (tmp_path / "recall.csv").write_text("model,class,recall\ncnn2,cat,0.5\n")
    assert call(plots.main, ".")[0] == 0 and (tmp_path / "recall.png").exists()


def test_a_single_seed_has_no_spread_to_draw(tmp_path, figures):
    row = {"run": "cnn2", "seed": 0, "best_epoch": 9, "validation_accuracy": 0.7, "test_accuracy": 0.7}
    write_rows(tmp_path / SEEDS, [row, row | {"run": "dense"}])
    pictures.draw_seeds(tmp_path)
    assert not figures


def settings():
    """Matplotlib's settings except the backend, which would be chosen by reading it."""
    return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}


@pytest.mark.pictures
def test_a_programs_matplotlib_settings_are_neither_used_nor_changed(tmp_path):
    write_comparison(tmp_path, names=("$1e-3_$2 $\\frac{", "cnn2"))
    plots.draw_comparison(tmp_path)
    picture = (tmp_path / "comparison.png").read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20, "lines.linewidth": 5}):
        before = settings()
        plots.draw_comparison(tmp_path)
        assert settings() == before
    assert (tmp_path / "comparison.png").read_bytes() == picture
