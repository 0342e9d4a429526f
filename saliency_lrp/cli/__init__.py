"""The ``saliency-lrp`` command: explain what a model sees in an image, from a terminal.

Writes one picture per image and a self-contained HTML page, and prints the numbers that belong to them.
"""

from .command import main
from .explained import Explained, Subject, explain, share_inside
from .options import EXAMPLES, build_batch_parser, build_parser
from .report import GLOSSARY, headline

__all__ = [
    "EXAMPLES",
    "GLOSSARY",
    "Explained",
    "Subject",
    "build_batch_parser",
    "build_parser",
    "explain",
    "headline",
    "main",
    "share_inside",
]
