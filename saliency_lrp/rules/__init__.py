"""The LRP rules: how one site hands the relevance of its output to its inputs.

A *site* is one call of a torch function during the traced forward pass. Every rule is a small class with one
method, ``relevance(site, R)``, that maps the relevance of the site's output to the relevance of each of its
inputs. A rule sees a site only through

* ``site.inputs``, ``site.output`` -- the activations that went in and came out,
* ``site.vjp(c)`` -- the transposed Jacobian of the (linearised) function applied to ``c``, one tensor per input,

and, on linear sites (convolutions, dense layers, folded batch norms, ...), through

* ``site.weight``, ``site.bias`` -- with a following batch norm already folded in,
* ``site.forward(a, w)``, ``site.transpose(c, w)`` -- the bias-free map and its transpose for any weight.

Notation: input a, weight w, bias b, output z = Σ a w + b, a⁺ = max(a, 0), a⁻ = min(a, 0), and the signed
stabiliser s(z) = z + ε·sgn(z) with sgn(0) = +1.

Papers: Bach et al. 2015 (ε, αβ), Montavon et al. 2017 (z⁺, z^B, w²: deep Taylor), Montavon et al. 2019 (γ, 0),
Lapuschkin et al. 2019 (flat), Andéol et al. 2021 (generalised γ), Arras et al. 2017 (signal takes all),
Achtibat et al. 2024 (AttnLRP: uniform, softmax), Zeiler & Fergus 2014 (DeconvNet),
Springenberg et al. 2015 (guided backpropagation), Zhang et al. 2018 (excitation backpropagation).
"""

from .activation import BetaSmooth, DeconvNet, ExcitationBackprop, GuidedBackprop
from .any_site import Gradient, Norm, Pass, Stop, Taylor
from .arithmetic import divide, stabilize
from .base import RULES, BiasMode, Rule, always, get, list_rules, unless_distributed
from .batch_norm import BatchNormReverse, PassBatchNorm, SplitBatchNorm
from .linear import (
    AlphaBeta,
    AlphaBetaX,
    Beta,
    Epsilon,
    Flat,
    Gamma,
    GeneralizedGamma,
    LinearRule,
    Part,
    Power,
    Rectified,
    WSquare,
    ZBox,
    ZeroRule,
    ZPlus,
)
from .product import AttentionAttnLRP, AttentionCPLRP, AttentionRule, SignalTakesAll, SoftmaxTaylor, Uniform, Unrolled
