"""Every figure is drawn for few and many classes, epochs and pictures, and no names overlap."""

import itertools
import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from lenext.evaluation import figures


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)  # matplotlib leaves its fonts open
        yield


@pytest.fixture
def drawn(monkeypatch):
    """The list of figures drawn, in place of files."""
    kept = []

    def keep(figure, path, **arguments):
        FigureCanvasAgg(figure).draw()
        kept.append(figure)

    monkeypatch.setattr(figures, "_save", keep)
    return kept


def row(epoch, **values):
    return {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 1 - 0.5 / epoch, **values}


def size(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def photos(*shapes):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.mark.parametrize(
    "history",
    [
        [row(1, val_loss=0.5, val_accuracy=0.8)],
        [row(1)],
        [{"epoch": 1}],
        [row(1, val_loss=None, val_accuracy=None), row(2, val_loss=0.4, val_accuracy=0.9)],
        [row(epoch, val_loss=0.5, val_accuracy=0.8) for epoch in range(1, 200)],
        [row(1, val_loss=float("nan"), val_accuracy=0.5), row(2, val_loss=float("inf"), val_accuracy=0.5)],
    ],
    ids=["one epoch", "no validation", "nothing measured", "sometimes validated", "many", "diverged"],
)
def test_curves(history, tmp_path):
    figures.draw_curves(history, tmp_path / "figures" / "curves.png")
    width, height = size(tmp_path / "figures" / "curves.png")
    assert width > 2 * height


def test_curves_of_one_epoch_show_both_points(drawn, tmp_path):
    figures.draw_curves([row(1, val_loss=0.5, val_accuracy=0.8)], tmp_path / "curves.png")
    for axes in drawn[0].axes:
        (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
        points = [line.get_xydata()[0] for line in axes.lines if line.get_label() in ("training", "validation")]
        assert len(points) == 2
        assert all(left < x < right and low < y < high for x, y in points)
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1"]


def test_curves_mark_the_best_epoch(drawn, tmp_path):
    accuracies = [0.5, 0.9, 0.9, 0.7]
    losses = [0.9, 0.5, 0.4, 0.6]
    history = [row(i + 1, val_loss=losses[i], val_accuracy=accuracies[i]) for i in range(4)]
    assert figures.best_epoch(history) == 3
    figures.draw_curves(history, tmp_path / "curves.png")
    figures.draw_curves(history, tmp_path / "curves.png", best=2)
    figures.draw_curves(history, tmp_path / "curves.png", best=0)  # the model from before the first epoch
    texts = [[text.get_text() for text in figure.axes[1].get_legend().get_texts()] for figure in drawn]
    assert "best epoch: 3 (90.0\N{NO-BREAK SPACE}%)" in texts[0]
    assert "best epoch: 2 (90.0\N{NO-BREAK SPACE}%)" in texts[1]
    assert texts[2] == ["training", "validation"]


def test_curves_take_the_last_row_of_an_epoch(drawn, tmp_path):
    figures.draw_curves([row(2, train_loss=9), row(1), row(2, train_loss=3)], tmp_path / "curves.png")
    np.testing.assert_array_equal(drawn[0].axes[0].lines[0].get_xydata(), [[1, 1], [2, 3]])


def test_curves_need_an_epoch(tmp_path):
    with pytest.raises(ValueError, match="no epoch"):
        figures.draw_curves([], tmp_path / "curves.png")


@pytest.mark.parametrize("K", [2, 3, 12, 32, 100])
def test_confusion_names_do_not_overlap(K, drawn, tmp_path):
    classes = [f"第{k}类, a long name of a class" for k in range(K)]
    matrix = np.diag(np.full(K, 12345)) + 1
    figures.draw_confusion(matrix, classes, tmp_path / "confusion.png")
    (figure,) = drawn
    labels = figure.axes[0].get_yticklabels()
    assert len(labels) == (K if K <= 100 else 100)
    assert all(label.get_text().endswith("…") for label in labels)
    for labels in (figure.axes[0].get_yticklabels(), figure.axes[0].get_xticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        if labels[0].get_rotation() != 45:  # the boxes of slanted names overlap, the names do not
            assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    cells = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(cells) == (K * K if K <= 32 else 0)
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(cells))


def test_confusion_counts_and_shares(drawn, tmp_path):
    figures.draw_confusion([[199, 1], [0, 0]], ["a", "absent"], tmp_path / "confusion.png")
    texts = [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in drawn[0].axes[0].texts]
    assert texts == ["199\n100 %", "1\n<1 %"]


def test_confusion_is_large_enough_to_read(tmp_path):
    path = tmp_path / "confusion.png"
    figures.draw_confusion([[5, 1], [2, 7]], ["猫", "$dog$\n<b>"], path)
    assert min(size(path)) > 350
    figures.draw_confusion(np.eye(200, dtype=int), [str(k) for k in range(200)], path)
    assert 2000 < max(size(path)) < 4000


@pytest.mark.parametrize(("N", "K"), [(1, 2), (40, 3), (2000, 100)])
def test_reliability(N, K, tmp_path):
    probabilities = np.random.default_rng(0).dirichlet(np.full(K, 0.1), size=N)
    figures.draw_reliability(probabilities, np.arange(N) % K, tmp_path / "reliability.png")
    assert min(size(tmp_path / "reliability.png")) > 600


@pytest.mark.parametrize("number", [1, 5, 6, 13])
def test_samples_of_any_shape(number, tmp_path):
    shapes = [(28, 28), (300, 40), (40, 300), (1, 1), (600, 800)]
    images = photos(*[shapes[k % 5] for k in range(number)])
    figures.draw_samples(images, ["猫 and a very long name of it"] * number, tmp_path / "samples.png")
    width, _ = size(tmp_path / "samples.png")
    assert width <= 8.6 * figures.DPI + 1


def test_samples_keep_their_proportions_and_stay_apart(drawn, tmp_path):
    images = photos((100, 200), (200, 100), (150, 150), (80, 400), (400, 80))
    figures.draw_mistakes(images, ["label\npredicted something\n98 %"] * 5, tmp_path / "mistakes.png")
    (figure,) = drawn
    frames = [axes.get_window_extent() for axes in figure.axes]
    for image, frame in zip(images, frames, strict=True):
        assert frame.height / frame.width == pytest.approx(image.shape[0] / image.shape[1], rel=0.01)
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    width, height = figure.canvas.get_width_height()
    assert all(box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes)


def test_no_mistakes_no_file(tmp_path):
    figures.draw_mistakes([], [], tmp_path / "mistakes.png")
    assert not (tmp_path / "mistakes.png").exists()


def test_percent():
    assert figures.percent(0.914) == "91.4\N{NO-BREAK SPACE}%"
    assert figures.percent(0.001, 0) == "<1\N{NO-BREAK SPACE}%"
    assert figures.percent(0, 0) == "0\N{NO-BREAK SPACE}%"
