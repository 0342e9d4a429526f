"""Registering with TensorWatch and IPython, in either import order, and taking it back."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import saliency_lrp
from saliency_lrp import plugin
from tests.helpers.nets import ModuleNet, twins
from tests.helpers.torchvision_cpu import import_torchvision

ROOT = Path(__file__).resolve().parents[2]


def _python(code: str) -> str:
    """Run code in a fresh interpreter, with torchvision made importable."""
    start = "from tests.helpers.torchvision_cpu import import_torchvision\n"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", start + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_is_cheap():
    code = """
        import sys
        import saliency_lrp
        heavy = ["captum", "tensorwatch", "torchvision", "matplotlib", "ipywidgets", "anywidget", "pandas",
                 "sklearn", "skimage", "IPython", "PIL"]
        print([name for name in heavy if name in sys.modules])
    """
    assert _python(code) == "[]"


def test_the_public_names():
    code = """
        import saliency_lrp as s
        missing = [name for name in s.__all__ if getattr(s, name, None) is None]
        assert not missing, missing
        assert callable(s.lrp_linear) and set(s.__all__) <= set(dir(s))
        from saliency_lrp import LrpExplainer, RelevancePropagator, rules, composites, list_rules, list_composites
        try:
            s.get_salience
        except AttributeError as error:
            print(error)
    """
    assert "get_salience" in _python(code)


SHOW = """
    import torch
    from PIL import Image
    from tests.helpers.nets import ModuleNet
    img, net = Image.new("RGB", (16, 16), "red"), ModuleNet()
    print(tw.get_saliency(net, img, method="lrp").shape)
    results = tw.get_image_saliency_results(net, img, methods=["lrp", "grad_x_input", "occlusion"])
    print(type(results).__name__, [r.title for r in results], [r.error for r in results if r.error])
    print(type(tw.get_image_saliency_plot(results)).__name__, callable(tw.compare_saliency))
    from tensorwatch.saliency import saliency
    print(saliency.get_saliency is saliency_lrp.get_saliency)
"""
SHOWN = ["(16, 16)", "SaliencyResults ['lrp', 'grad_x_input', 'occlusion'] []", "Figure True", "True"]


def test_tensorwatch_imported_first():
    code = """
    import_torchvision()
    import tensorwatch as tw
    import saliency_lrp
    """
    assert _python(code + SHOW).splitlines() == SHOWN


def test_tensorwatch_imported_last():
    code = """
    import_torchvision()
    import saliency_lrp
    saliency_lrp.unregister()
    saliency_lrp.register()
    import tensorwatch as tw
    """
    assert _python(code + SHOW).splitlines() == SHOWN


@pytest.fixture
def tensorwatch():
    """TensorWatch's two modules in this process, as they are without this package."""
    import_torchvision()
    import tensorwatch
    from tensorwatch.saliency import saliency

    saliency_lrp.unregister()
    yield tensorwatch, saliency
    saliency_lrp.register()


def test_unregister_restores_tensorwatch_exactly(tensorwatch):
    tw, saliency = tensorwatch
    before = dict(vars(tw)), dict(vars(saliency))
    assert not hasattr(tw, "get_saliency")
    saliency_lrp.register()
    changed = dict(vars(tw)), dict(vars(saliency))
    assert changed != before and tw.get_saliency is saliency.get_saliency is saliency_lrp.get_saliency
    saliency_lrp.register()
    assert (dict(vars(tw)), dict(vars(saliency))) == changed
    for _ in range(2):
        saliency_lrp.unregister()
        assert (dict(vars(tw)), dict(vars(saliency))) == before
    saliency_lrp.register()
    assert (dict(vars(tw)), dict(vars(saliency))) == changed


def test_importing_tensorwatch_while_unregistered_attaches_nothing(tensorwatch):
    fresh = types.ModuleType("tensorwatch")
    plugin._attach(fresh)
    assert not hasattr(fresh, "get_saliency")
    saliency_lrp.register()
    plugin._attach(fresh)
    assert fresh.get_saliency is saliency_lrp.get_saliency


def test_tensorwatchs_explainer_hook(tensorwatch):
    """A function of TensorWatch taken before registering asks the hook, which answers with our explainers."""
    _, saliency = tensorwatch
    theirs = saliency.get_saliency
    saliency_lrp.register()
    assert theirs is not saliency.get_saliency
    net, x, label = twins(ModuleNet)[0], torch.rand(1, 3, 16, 16), torch.tensor([2])
    for name in ("lrp", "deeplift", "occlusion", "vanilla_grad"):
        expected = saliency_lrp.get_saliency(net, None, x, label, method=name)
        np.testing.assert_allclose(theirs(net, None, x, label, method=name), expected, atol=1e-5)
    cam = saliency._get_explainer("gradcam", net, ["relu2"]).explain(x, label)
    assert cam.shape == x.shape


def test_load_ext(tensorwatch):
    tw, _ = tensorwatch
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "saliency_lrp")
    assert tw.get_saliency is saliency_lrp.get_saliency
    shell.run_line_magic("unload_ext", "saliency_lrp")
    assert not hasattr(tw, "get_saliency")
    shell.run_line_magic("load_ext", "saliency_lrp")
    assert tw.get_saliency is saliency_lrp.get_saliency
