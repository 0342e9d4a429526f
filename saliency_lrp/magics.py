"""``%saliency model image`` and ``%%saliency model`` with one image a line."""

from __future__ import annotations

from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class
from IPython.core.magic_arguments import argument, magic_arguments, parse_argstring


def compare(model: Any, image: Any, **options: Any) -> Any:
    """The widget of one comparison."""
    from .widget import compare_saliency

    return compare_saliency(model, image, **options)


@magics_class
class SaliencyMagics(Magics):
    """Comparisons in one line."""

    @magic_arguments()
    @argument("model", help="Python expression of the model; quote it if it has spaces")
    @argument("image", nargs="?", help="Python expression of the image, or a path in quotes; left out in a cell")
    @argument("--methods", "-m", nargs="+", help="methods to compare")
    @argument("--label", "-l", type=int, help="class to explain; default: the one with the highest score")
    @argument("--rule", "-r", dest="composite", help="LRP composite")
    @argument("--layer", help="a layer to show beside the methods")
    @argument("--cmap", help="diverging colour map")
    @argument("--sign", choices=("both", "positive", "negative"))
    @argument("--opacity", type=float)
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
        text = expression.strip()
        # IPython's argument splitting keeps quotes: one pair is the shell's, a path keeps its own
        if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and not self._is_path(text[1:-1]):
            text = text[1:-1]
        return self.shell.ev(text)

    @staticmethod
    def _is_path(text: str) -> bool:
        import os

        return os.path.exists(text)


def register_magics(ipython: Any) -> None:
    """Make ``%saliency`` known to an IPython shell. Calling it again changes nothing."""
    ipython.register_magics(SaliencyMagics)


def unregister_magics(ipython: Any) -> None:
    """Take ``%saliency`` away again."""
    for kind in ("line", "cell"):
        ipython.magics_manager.magics[kind].pop("saliency", None)
    ipython.magics_manager.registry.pop("SaliencyMagics", None)
