"""``saliency-lrp page``: a folder of files that explains pictures in a browser."""

from __future__ import annotations

import argparse
from typing import Any

from .. import photographs
from .models import find_model
from .options import DEMO_IMAGES


def run_page(options: argparse.Namespace, command: str) -> None:
    """Write the page and say how to look at it."""
    from ..page import write_page

    model, examples = find_model(options).eval(), list(options.examples)
    if options.demo and photographs.is_installed():
        model = photographs.load_photo_model()
    written = write_page(
        model,
        options.out,
        options.composite,
        examples or own_examples(options),
        options.runtime,
        options.title,
    )
    print(f"wrote {written}\nlook at it: python -m http.server --directory {options.out}")


def own_examples(options: argparse.Namespace) -> list[Any]:
    """Pictures that come with the models of the package."""
    if options.model == photographs.PHOTO_MODEL or (options.demo and photographs.is_installed()):
        return [photograph.image for photograph in photographs.photographs()]
    if options.demo or options.digits:
        from ..demo import demo_images

        return [image for image, _, _ in demo_images(DEMO_IMAGES)]
    return []
