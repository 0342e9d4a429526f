"""What a user sees of long explanations: passes made, an honest estimate, and nothing when they are done."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from saliency_lrp.explainers import get, progress
from saliency_lrp.explainers.perturbation import default_sides


class Recorder:
    """A screen that remembers."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.cleared = 0

    def show(self, text: str) -> None:
        self.shown.append(text)

    def clear(self) -> None:
        self.cleared += 1


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "~1 s"), (42, "~42 s"), (89, "~89 s"), (180, "~3 min"), (5000, "~83 min"), (7200, "~2 h")],
)
def test_durations_in_words(seconds, words):
    assert progress.duration(seconds) == words


def test_the_line_counts_passes_and_extrapolates_their_speed():
    line = progress.Line("occlusion", 730, Recorder())
    line.done = 97
    assert line.text(0.3 * 97) == "occlusion 97/730, ~3 min"  # 633 passes of 0.3 s are left: 190 s
    line.done = 0
    assert line.text(5.0) == "occlusion 0/730"  # nothing is known yet


@pytest.mark.parametrize("method", ["occlusion", "ablation", "smooth_grad", "lime_imagenet"])
def test_every_long_method_counts_its_own_passes_and_takes_its_line_away(method, monkeypatch):
    screen = Recorder()
    monkeypatch.setattr(progress, "_screen", lambda: screen)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    get(method, net).explain(torch.randn(1, 3, 16, 16))
    counts = [tuple(map(int, line.split()[1].rstrip(",").split("/"))) for line in screen.shown]
    assert counts and all(line.startswith(method) for line in screen.shown)
    assert [done for done, _ in counts] == sorted(done for done, _ in counts)
    assert counts[-1][0] == counts[-1][1] > 1  # ends at the number it promised
    assert screen.cleared == 1


def test_a_failed_or_interrupted_method_takes_its_line_away(monkeypatch):
    screen = Recorder()
    monkeypatch.setattr(progress, "_screen", lambda: screen)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), progress.progress(lambda x: x, 10, "m") as forward:
            forward(torch.zeros(1))
            raise error
    assert screen.cleared == 2


def test_a_terminal_line_is_erased(capsys):
    screen = progress.Terminal()
    screen.show("occlusion 10/20, ~3 min")
    screen.show("occlusion 20/20")
    screen.clear()
    written = capsys.readouterr().err
    line = ""
    for part in written.split("\r"):  # as a terminal does: from the first column over what is there
        line = part + line[len(part) :]
    assert line.strip() == "" and "10/20" in written


def test_a_notebook_gets_an_output_that_ends_empty(monkeypatch):
    ip = pytest.importorskip("IPython.display")
    sent = []

    class Handle:
        def update(self, data, raw):
            sent.append(data)

    monkeypatch.setattr(ip, "display", lambda data, raw, display_id: sent.append(data) or Handle())
    screen = progress.NotebookOutput()
    screen.clear()
    assert sent == []  # nothing was shown, nothing is left
    screen.show("a 1/2")
    screen.show("a 2/2")
    screen.clear()
    assert sent == [{"text/plain": "a 1/2"}, {"text/plain": "a 2/2"}, {}]


@pytest.mark.parametrize("sides", [(32, 48, 48), (16, 16, 16), (8, 256, 256), (96, 96, 96), (4, 5, 200), (9, 9, 9, 9)])
def test_occlusion_of_a_volume_takes_about_the_passes_of_a_picture(sides):
    window = default_sides(sides)
    assert all(1 <= edge <= side for edge, side in zip(window, sides, strict=True))
    places = 1
    for side, edge in zip(sides, window, strict=True):
        places *= -(-(side - edge) // max(1, edge // 2)) + 1
    assert places <= 1.2 * 27 * 27


def test_occlusion_takes_one_number_a_side():
    """A linear score: occluding a window takes away exactly its weights."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4 * 6 * 8, 1, bias=False))
    x = torch.rand(1, 1, 4, 6, 8)
    got = get("occlusion", net, window=(2, 3, 4), stride=(2, 3, 4)).explain(x, 0)
    parts = (net[1].weight.detach().reshape(4, 6, 8) * x[0, 0]).reshape(2, 2, 2, 3, 2, 4).sum((1, 3, 5))
    expected = parts.repeat_interleave(2, 0).repeat_interleave(3, 1).repeat_interleave(4, 2)
    torch.testing.assert_close(got[0, 0], expected, atol=1e-5, rtol=1e-4)
    again = get("ablation", net, window=(2, 3, 4)).explain(x, 0)
    torch.testing.assert_close(again[0, 0], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"window": (2, 3)}, {"window": 0}, {"window": (2, 0, 1)}, {"stride": (1, 1)}])
def test_bad_windows_are_refused(options):
    from saliency_lrp.errors import InputError

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(InputError, match="window|stride"):
        get("occlusion", net, **options).explain(torch.rand(1, 1, 4, 4, 4))
