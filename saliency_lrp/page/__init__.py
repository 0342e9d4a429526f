"""A page that explains by itself: a folder of files, in which a browser computes class and map of a picture."""

from .build import write_page
from .runtime import RUNTIME_VERSION

__all__ = ["RUNTIME_VERSION", "write_page"]
