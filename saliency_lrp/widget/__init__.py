"""The interactive overlay: a model's maps side by side over one picture, in a notebook.

``widget`` is the view and what it asks, ``source`` what it asks of, ``model_maps`` a model that answers, ``compare``
the front door, ``worker`` the threads, ``still`` what a saved notebook keeps, ``page`` the view as a page of its own,
``marks`` the lines over a picture, ``static/`` the browser's side.
"""

from ..display.colors import SIGNS, blend, color_limit, color_table
from .compare import compare_saliency
from .source import Channels, Checked, Map, MapSource
from .widget import SaliencyWidget

colour_limit, colour_table = color_limit, color_table  # the older spelling

__all__ = [
    "SIGNS",
    "Channels",
    "Checked",
    "Map",
    "MapSource",
    "SaliencyWidget",
    "blend",
    "color_limit",
    "color_table",
    "colour_limit",
    "colour_table",
    "compare_saliency",
]
