"""The command line's options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from .. import __version__
from ..explainers.registry import DEFAULT_METHODS

DEMO_IMAGES = 3


DEMO_OUT = "build/demo"
#: images that are explained one by one, on one page; more are a job for ``saliency-lrp batch``
MOST_IMAGES = 50


EXAMPLES = """\
examples:
  saliency-lrp --demo
      photographs by a network trained on ImageNet, where saliency-lrp[demo] is installed; else as --digits
  saliency-lrp --digits
      three images by a small network that comes with the package; needs no other file
  saliency-lrp dog.jpg --model resnet50
      a torchvision classifier; its weights are downloaded the first time
  saliency-lrp scan.png --module train.py:make_model
      your own network: make_model() in train.py returns it, weights loaded
  saliency-lrp dog.jpg --model vgg16 --method lrp --method gradcam --target 207
      chosen methods, side by side, for class 207 instead of the model's own answer
  saliency-lrp dog.jpg --model vgg16 --method lrp:epsilon_plus --method lrp:epsilon_gamma_box
      rules of relevance propagation, side by side
  saliency-lrp batch photos/ --model resnet50 --out maps.zarr
      thousands of images, into a Zarr store; see saliency-lrp batch --help
  saliency-lrp page --module train.py:make_model --out site
      a web page that explains pictures by itself, in the browser; see saliency-lrp page --help
  saliency-lrp photos/*.jpg --model resnet50 --out look
      several images on one page
  saliency-lrp --list
      the names of all methods and composites

what you get:
  a folder with a PNG per image and index.html, which holds all of it in one file. Red speaks for the
  class, blue against it. For LRP, 'conserved' is the share of the class score that the map accounts for.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = _Parser(
        prog="saliency-lrp",
        description="Show which pixels of an image a PyTorch model's answer came from.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="images to explain, in any format that Pillow reads, or folders of some",
    )
    _add_model(parser, "photographs by EfficientNet-Lite0 (extra 'demo'); without it, and with IMAGE, as --digits")
    parser.add_argument(
        "--method",
        action="append",
        metavar="NAME",
        help=f"a saliency method; repeat it for several (default: {', '.join(DEFAULT_METHODS)})",
    )
    parser.add_argument("--target", type=int, metavar="N", help="the class to explain (default: the answer)")
    parser.add_argument("--composite", metavar="NAME", help="the rules of method lrp (default: auto)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"where to write (default: IMAGE-saliency, saliency for several, or {DEMO_OUT})",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the model's)")
    parser.add_argument("--list", action="store_true", help="list all methods and composites, and stop")
    return parser


def _add_model(parser: argparse.ArgumentParser, demo: str) -> None:
    whose = parser.add_mutually_exclusive_group()
    whose.add_argument(
        "--model",
        metavar="NAME",
        help="a torchvision classifier, with its trained weights; or efficientnet_lite0 (extra 'demo')",
    )
    whose.add_argument(
        "--module", metavar="FILE.py:NAME", help="a model, or a function without arguments that returns one"
    )
    whose.add_argument("--demo", action="store_true", help=demo)
    whose.add_argument("--digits", action="store_true", help="the small digit network that comes with the package")


def build_batch_parser() -> argparse.ArgumentParser:
    """The options of `saliency-lrp batch`."""
    parser = _Parser(
        prog="saliency-lrp batch",
        description="Explain all images of a folder by LRP, into a Zarr store. An interrupted run is resumed by the "
        "same command; under torchrun the processes share the work.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images, at any depth")
    _add_model(parser, "the small digit network")
    parser.add_argument("--out", type=Path, default=Path("maps.zarr"), metavar="STORE", help="default: %(default)s")
    parser.add_argument(
        "--target",
        action="append",
        type=lambda text: None if text == "best" else int(text),
        metavar="N",
        help="a class to explain, or 'best' for the model's answer; repeat it for several (default: best)",
    )
    parser.add_argument(
        "--layer", action="append", default=[], metavar="NAME", help="also keep this module's relevance; repeatable"
    )
    parser.add_argument("--composite", default="auto", metavar="NAME", help="the rules (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images at once, and per chunk (default: 16)")
    parser.add_argument("--float16", action="store_true", help="store maps in half precision")
    parser.add_argument(
        "--compiled",
        nargs="?",
        const=True,
        default=False,
        metavar="inductor",
        help="make maps by a captured graph; with the word inductor, under torch.compile",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: the model's)")
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="also write a page of all maps to sort: odd ones first, by class, by account (default: STORE.html)",
    )
    parser.add_argument("--overwrite", action="store_true", help="start again instead of going on")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def build_page_parser() -> argparse.ArgumentParser:
    """The options of `saliency-lrp page`."""
    parser = _Parser(
        prog="saliency-lrp page",
        description="Write a web page that explains pictures by itself: a folder of files, in which the browser "
        "computes class and map. Any file server serves it: python -m http.server --directory site",
    )
    parser.add_argument("examples", nargs="*", metavar="IMAGE", help="pictures to begin with, beside the page")
    _add_model(parser, "EfficientNet-Lite0 (extra 'demo'); without it as --digits")
    parser.add_argument("--composite", default="auto", metavar="NAME", help="the rules (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("site"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("--title", metavar="TEXT", help="over the page (default: the model's class)")
    parser.add_argument(
        "--runtime",
        type=Path,
        metavar="FOLDER",
        help="the unpacked npm package onnxruntime-web (default: npm fetches the tested version)",
    )
    return parser
