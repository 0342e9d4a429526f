"""Which saliency maps to trust, measured: localisation, perturbation, randomisation, stability.

``evaluate(model, inputs, targets, ["lrp", "gradcam"], masks=masks)`` gives a table of scores per method and metric.
The metrics are those of Quantus (Hedström et al. 2023; the extra ``saliency-lrp[evaluation]``), where not said
otherwise. :func:`morf_lerf` and :func:`grid_pointing_game` need nothing else. In the other direction,
:func:`quantus_explain_func` plugs every method of this package into Quantus.

A map counts as evidence *for* a class where it is positive: channels are summed, then localisation metrics are given
the positive part (Quantus' relevance mass divides signed sums, which leaves [0, 1] and explodes near zero).
"""

from .methods import Method, channel_sum, explain_function, quantus_explain_func
from .metrics import METRICS, Metric, Task, list_metrics
from .perturbation import INFILLS, morf_lerf
from .pointing import compose_grids, grid_pointing_game, positive_share
from .run import evaluate
from .table import Evaluation

__all__ = [
    "INFILLS",
    "METRICS",
    "Evaluation",
    "Method",
    "Metric",
    "Task",
    "channel_sum",
    "compose_grids",
    "evaluate",
    "explain_function",
    "grid_pointing_game",
    "list_metrics",
    "morf_lerf",
    "positive_share",
    "quantus_explain_func",
]
