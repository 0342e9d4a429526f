"""``%saliency model image`` and ``%%saliency model`` with one image a line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring

from .display.looks import LOOKS, Scale
from .errors import InputError


def compare(model: Any, image: Any, **options: Any) -> Any:
    """The widget of one comparison."""
    from .widget import compare_saliency

    return compare_saliency(model, image, **options)


def _looks(function: Any) -> Any:
    """An argument for every way to look at a map."""
    for name, look in reversed(LOOKS.items()):
        number = isinstance(look, Scale)
        names = None if isinstance(look, Scale) or look.names is None else (*look.names, *look.also)
        function = argument(f"--{name}", type=float if number else str, choices=names, help=look.label)(function)
    return function


@magics_class
class SaliencyMagics(Magics):
    """Comparisons in one line."""

    @magic_arguments()
    @argument("model", help="Python expression of the model; quote it if it has spaces")
    @argument("image", nargs="?", help="Python expression of the image, or the path of a file; left out in a cell")
    @argument("--methods", "-m", nargs="+", help="methods to compare")
    @argument("--label", "-l", type=int, help="class to explain; default: the one with the highest score")
    @argument("--composite", "--rule", "-r", dest="composite", help="LRP composite")
    @argument("--layer", help="a layer to show beside the methods")
    @_looks
    @line_cell_magic
    def saliency(self, line: str, cell: str | None = None) -> Any:
        """Compare saliency methods: ``%saliency model image --methods lrp occlusion``.

        As a cell magic, every line of the cell is an image:

            %%saliency model --methods lrp grad_x_input
            cat
            dog
        """
        given = vars(parse_argstring(self.saliency, line))
        model, image = given.pop("model"), given.pop("image")
        options = {name: value for name, value in given.items() if value is not None}
        if cell is None and image is None:
            raise UsageError("%saliency needs a model and an image: %saliency model image --methods lrp occlusion")
        if cell is not None and image is not None:
            raise UsageError(
                f"%%saliency takes its images from the cell, one a line; {image!r} is one too many. "
                "Write methods after --methods."
            )
        with _in_one_line():
            if cell is None:
                return compare(self._value(model), self._value(image), **options)
            return self._compare_lines(model, cell, options)

    def _compare_lines(self, model: str, cell: str, options: dict[str, Any]) -> None:
        from IPython.display import display

        lines = [line.strip() for line in cell.splitlines()]
        wanted = [line for line in lines if line and not line.startswith("#")]
        if not wanted:
            raise UsageError("%%saliency has no image: write one a line below it.")
        for line in wanted:
            display(compare(self._value(model), self._value(line), **options))

    def _value(self, expression: str) -> Any:
        """What a word of the line means: a file's path as it is, anything else as an expression."""
        text = expression.strip()
        # IPython's argument splitting keeps quotes
        bare = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
        shell = self.shell
        assert shell is not None, "a magic is called in a shell"
        if os.path.exists(bare) and bare not in shell.user_ns:
            return bare
        try:
            return shell.ev(bare)
        except (NameError, SyntaxError) as error:
            raise UsageError(f"{bare!r} is neither a variable nor an expression nor a file here ({error})") from None


@contextmanager
def _in_one_line() -> Iterator[None]:
    """An error that quotes what was typed needs no traceback."""
    try:
        yield
    except InputError as error:
        raise UsageError(str(error)) from error


def register_magics(ipython: Any) -> None:
    """Make ``%saliency`` known to an IPython shell. Calling it again changes nothing."""
    ipython.register_magics(SaliencyMagics)


def unregister_magics(ipython: Any) -> None:
    """Take ``%saliency`` away again."""
    for kind in ("line", "cell"):
        ipython.magics_manager.magics[kind].pop("saliency", None)
    ipython.magics_manager.registry.pop("SaliencyMagics", None)
