"""The interactive overlay: a model's maps side by side over one picture, in a notebook.

``widget`` is the view and what it asks, ``source`` what it asks of, ``model_maps`` a model that answers, ``compare``
the front door, ``worker`` the threads, ``still`` what a saved notebook keeps, ``page`` the view as a page of its own,
``marks`` the lines over a picture, ``static/`` the browser's side.
"""

from ..display.colours import SIGNS, blend, colour_limit, colour_table
from .compare import compare_saliency
from .source import Channels, Checked, Map, MapSource
from .widget import SaliencyWidget

__all__ = [
    "SIGNS",
    "Channels",
    "Checked",
    "Map",
    "MapSource",
    "SaliencyWidget",
    "blend",
    "colour_limit",
    "colour_table",
    "compare_saliency",
]
