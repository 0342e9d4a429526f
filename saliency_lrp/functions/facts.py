"""What each torch function does: one row a function, read by everything that must know one function from another.

A row says which **kind** a function is of, which is how it hands relevance back (see ``README.md``), and what it
**claims**. A claim holds for every call, or is a predicate that looks at the call's arguments. Everything that is
claimed here is tried on the samples of PyTorch's own operator database and on random inputs
(``tests/unit/functions/test_facts.py``).

============== ====================================================================================================
claim          what holds for the function ``f`` of the activations among its arguments (numbers stay as they are)
============== ====================================================================================================
elementwise    every value of the result comes from one value of the first activation
homogeneous    ``f(t·a) − f(0) = t · (f(a) − f(0))`` for t > 0: by Euler's identity f(a) − f(0) is gradient × input
zero_to_zero   ``f(0) = 0``
never_negative ``f(a) ≥ 0`` wherever it is defined
keeps_sign     ``f(a) ≥ 0`` where all tensors that it reads are ≥ 0
average        the weights of a sum are the same, or add up to one, for every output
pooling        it runs over windows of an image, a series or a volume
rectifier      it is ``max(a, 0)``, or that with a bound above
winner         the values that win a comparison are let through, which may be others where others are compared
maximum        the largest value of each window, group or axis is let through
matrix_product ``a @ b`` of its first two arguments
several        it returns more than one tensor
views          the results are several views of one tensor
diagonal       the values stand on the diagonal of a matrix (the last two axes) of zeros
random         it draws random numbers
statistic      relevance seldom passes it: it is a step of a statistic, or its result a gate
============== ====================================================================================================

Some columns are choices of this package rather than properties: ``statistic``; and ``gate``, which says how much a
result looks like a factor that weighs signals (``GATE``), like a bounded value that becomes one when a constant is
added (``BOUNDED``), or as its input does (``AS_INPUT``; what is not said looks ``PLAIN``). Others are about arguments:
``shape_only`` names operands whose shape or dtype counts and whose values do not, ``signs`` says with which sign each
operand of an addition counts, ``factors`` how the operands of a product are called, and ``limit`` that a function holds
values by others from ``"below"`` or ``"above"``. Tables of what else is known by name are at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..model.devices import knows_cheaply
from ..sites.call import Call
from ..sites.facts import NOTHING, TABLE, Facts, names, of, rows
from ..sites.tag import AS_INPUT, BOUNDED, GATE, PLAIN

__all__ = ["AS_INPUT", "BOUNDED", "GATE", "NOTHING", "PLAIN", "TABLE", "Facts", "names", "of", "rows"]

# ------------------------------------------------------------------------------------------------ claims of a call


def number(value: Any) -> float | None:
    """A plain number, also as a tensor without axes on the CPU; None for what is not one, or not known for free."""
    if isinstance(value, Tensor):
        known = value.dim() == 0 and knows_cheaply(value) and not value.requires_grad and not value.is_complex()
        return float(value) if known and not value.is_meta else None
    return float(value) if isinstance(value, int | float) else None


def argument(position: int, name: str, default: Any = None) -> Callable[[Call], Any]:
    """Reads an argument of a call."""
    return lambda call: call.arg(position, name, default)


def at_least_zero(*arguments: Callable[[Call], Any]) -> Callable[[Call], bool]:
    """Whether these arguments, where they are given as numbers, are not negative (tensors are looked at elsewhere)."""

    def holds(call: Call) -> bool:
        values = [read(call) for read in arguments]
        return all(v is None or isinstance(v, Tensor) or v >= 0 for v in values)

    return holds


def bounds(call: Call) -> tuple[float | None, float | None]:
    """Between which numbers a clamping function holds its output; −∞ and ∞ where it does not, None for tensors."""
    read = {
        "relu": lambda: (0.0, math.inf),
        "relu6": lambda: (0.0, 6.0),
        "hardtanh": lambda: (call.arg(1, "min_val", -1.0), call.arg(2, "max_val", 1.0)),
        "clamp_min": lambda: (call.arg(1, "min"), math.inf),
        "clamp_max": lambda: (-math.inf, call.arg(1, "max")),
        "threshold": lambda: (threshold(call)[1], math.inf),
    }.get(call.name, lambda: (call.arg(1, "min"), call.arg(2, "max")))
    low, high = read()
    return (-math.inf if low is None else number(low)), (math.inf if high is None else number(high))


def bounded_below_by_zero(call: Call) -> bool:
    low, high = bounds(call)
    return low is not None and low >= 0 and high is not None and high >= 0


def bounded_above_by_a_positive_number(call: Call) -> bool:
    high = bounds(call)[1]
    return high is not None and high >= 0


def zero_within_bounds(call: Call) -> bool:
    low, high = bounds(call)
    return low is not None and high is not None and low <= 0 <= high


def cuts_at_zero(call: Call) -> bool:
    low, high = bounds(call)
    return low == 0 and high is not None and high > 0


def threshold(call: Call) -> tuple[float, float]:
    return call.arg(1, "threshold"), call.arg(2, "value")


def exponent(call: Call) -> float | None:
    return number(call.arg(1, "exponent", 1))


def is_even(power: float | None) -> bool:
    return power is not None and power % 2 == 0


def negative_power(call: Call) -> int:
    power = exponent(call)
    return GATE if power is not None and power < 0 else PLAIN


def positive_power(call: Call) -> bool:
    power = exponent(call)
    return power is not None and power > 0


def has_constant(position: int, name: str) -> Callable[[Call], bool]:
    """Whether an argument does not depend on the model's input."""
    return lambda call: not call.is_activation(call.arg(position, name))


def not_both(*factors: tuple[int, str]) -> Callable[[Call], bool]:
    """Whether at least one of these arguments does not depend on the model's input."""
    return lambda call: not all(call.is_activation(call.arg(*factor)) for factor in factors)


def between_zero_and_one(position: int, name: str) -> Callable[[Call], bool]:
    def holds(call: Call) -> bool:
        value = number(call.arg(position, name))
        return value is not None and 0 <= value <= 1

    return holds


def reduced_by(*ways: str, position: int = 4) -> Callable[[Call], bool]:
    return lambda call: call.arg(position, "reduce") in ways


def written_value(position: int, name: str) -> Callable[[Call], bool]:
    """Whether the constant that a function writes is not negative."""
    return at_least_zero(argument(position, name))


def power_of_norm(call: Call) -> bool:
    """A norm of order 0 counts entries; any other is homogeneous."""
    order = call.arg(1, "ord" if call.name.startswith("linalg") else "p")
    return order != 0


def makes_a_matrix(call: Call) -> bool:
    """Whether ``diag`` makes a matrix of a vector (of a matrix it takes the diagonal)."""
    return call.activations[0].dim() == 1 and call.arg(1, "offset" if call.name == "diagflat" else "diagonal", 0) == 0


def on_the_main_diagonal(call: Call) -> bool:
    axes = {call.arg(2, "dim1", -2), call.arg(3, "dim2", -1)}
    n = call.activations[0].dim() + 1
    return call.arg(1, "offset", 0) == 0 and {axis % n for axis in axes} == {n - 2, n - 1}


def accumulates(position: int) -> Callable[[Call], str]:
    """Writing over values moves them, adding to them is a sum."""
    return lambda call: "sum" if call.arg(position, "accumulate", False) else "placing"


def scattered(call: Call) -> str:
    ways = {None: "placing", "add": "scattered sum", "multiply": "product of many"}
    return ways.get(call.arg(4, "reduce"), "unknown")


def reduced(call: Call) -> str:
    return "product of many" if call.arg(4, "reduce") == "prod" else "sum"


def drops_values(call: Call) -> bool:
    """Whether a dropout is on: functions have ``training`` on unless told otherwise, operators have it always given."""
    on = call.arg(2, "training" if "training" in call.kwargs else "train", True)
    return bool(on) and call.arg(1, "p", 0.5) > 0


def random_slopes(call: Call) -> bool:
    return bool(call.arg(3, "training", False))


def of_complex_numbers(kind: str) -> Callable[[Call], str]:
    """``kind`` for real activations; of complex ones it is a function of pairs, in proportion."""
    return lambda call: "sum" if any(a.is_complex() for a in call.activations) else kind


#: What values that only move keep.
MOVES = "homogeneous zero_to_zero keeps_sign"

# ------------------------------------------------------------------------------------------------ activations

rows("activation", "relu", "elementwise homogeneous zero_to_zero never_negative rectifier")
rows("activation", "relu6", "elementwise zero_to_zero never_negative rectifier")
rows("activation", "leaky_relu", "elementwise homogeneous zero_to_zero keeps_sign")
rows("activation", "prelu", "elementwise zero_to_zero keeps_sign", homogeneous=has_constant(1, "weight"))
rows(
    lambda call: "random slopes" if random_slopes(call) else "activation",
    "rrelu",
    "elementwise homogeneous zero_to_zero keeps_sign",
    random=random_slopes,
)
rows("activation", "elu selu celu gelu silu mish hardswish softsign tanhshrink", "elementwise zero_to_zero keeps_sign")
rows("activation", "softshrink hardshrink", "elementwise zero_to_zero keeps_sign")
rows(
    "activation",
    "clamp clip hardtanh clamp_max",
    "elementwise",
    zero_to_zero=zero_within_bounds,
    never_negative=bounded_below_by_zero,
    keeps_sign=bounded_above_by_a_positive_number,
    rectifier=cuts_at_zero,
    gate=AS_INPUT,
)
rows(
    "activation",
    "clamp_min",
    "elementwise keeps_sign",
    zero_to_zero=zero_within_bounds,
    never_negative=bounded_below_by_zero,
    rectifier=cuts_at_zero,
    gate=AS_INPUT,
)
rows(
    "activation",
    "threshold",
    "elementwise",
    zero_to_zero=lambda call: threshold(call)[1] == 0 or threshold(call)[0] < 0,
    never_negative=lambda call: min(threshold(call)) >= 0,
    keeps_sign=lambda call: threshold(call)[1] >= 0,
    rectifier=lambda call: threshold(call) == (0, 0),
)
rows("activation", "sigmoid expit hardsigmoid exp exp2 rsqrt", "elementwise never_negative statistic", gate=GATE)
rows("activation", "reciprocal", "elementwise keeps_sign statistic", gate=GATE)
rows("activation", "tanh erf", "elementwise zero_to_zero keeps_sign", gate=BOUNDED)
rows("activation", "erfc", "elementwise never_negative", gate=BOUNDED)
rows("activation", "softplus cosh acosh acos", "elementwise never_negative")
rows("activation", "square sqrt", "elementwise zero_to_zero never_negative statistic", gate=AS_INPUT)
rows(
    of_complex_numbers("activation"),
    "abs absolute",
    "elementwise homogeneous zero_to_zero never_negative",
    gate=AS_INPUT,
)
rows(of_complex_numbers("activation"), "neg negative", "elementwise homogeneous zero_to_zero", gate=AS_INPUT)
rows("activation", "deg2rad rad2deg", "elementwise homogeneous zero_to_zero keeps_sign")
rows("activation", "log1p", "elementwise zero_to_zero keeps_sign statistic")
rows("activation", "expm1 sinh asinh atan arctan asin atanh erfinv frac", "elementwise zero_to_zero keeps_sign")
rows("activation", "sin", "elementwise zero_to_zero statistic")
rows("activation", "tan", "elementwise zero_to_zero")
rows("activation", "logsigmoid log_sigmoid", "elementwise", gate=GATE)
rows("activation", "log log2 log10 cos", "elementwise statistic")
rows("activation", "logit sinc", "elementwise")
rows(
    "activation",
    "pow float_power __pow__",
    "elementwise statistic",
    zero_to_zero=positive_power,
    never_negative=lambda call: is_even(exponent(call)),
    keeps_sign=lambda call: exponent(call) is not None,
    gate=negative_power,
)

# ------------------------------------------------------------------------------------------------ sums

rows("addition", "add __radd__", "homogeneous")
rows("addition", "sub subtract", "homogeneous", signs=(1.0, -1.0))
rows("addition", "rsub __rsub__", "homogeneous", signs=(-1.0, 1.0))
rows("sum", "sum mean cumsum", "homogeneous zero_to_zero keeps_sign average", gate=AS_INPUT)
rows("sum", "avg_pool1d avg_pool2d avg_pool3d", "homogeneous zero_to_zero keeps_sign average pooling", gate=AS_INPUT)
rows(
    "sum",
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d",
    "homogeneous zero_to_zero keeps_sign average pooling",
    gate=AS_INPUT,
)
rows(
    "sum",
    "interpolate upsample",
    "homogeneous zero_to_zero average",
    keeps_sign=lambda call: call.arg(3, "mode", "nearest") != "bicubic",
    gate=AS_INPUT,
)
rows("sum", "upsample_nearest upsample_bilinear", "homogeneous zero_to_zero keeps_sign average", gate=AS_INPUT)
rows("sum", "nansum nanmean trace fold col2im scatter_add", "homogeneous zero_to_zero keeps_sign", gate=AS_INPUT)
rows(
    "sum", "index_add", "homogeneous zero_to_zero", keeps_sign=at_least_zero(lambda call: call.kwargs.get("alpha", 1)),
    gate=AS_INPUT,
)  # fmt: skip
rows(
    reduced,
    "scatter_reduce",
    homogeneous=reduced_by("sum", "mean", "amax", "amin"),
    zero_to_zero=True,
    keeps_sign=True,
    gate=AS_INPUT,
)
rows(
    "sum",
    "lerp",
    zero_to_zero=True,
    homogeneous=has_constant(2, "weight"),
    keeps_sign=between_zero_and_one(2, "weight"),
    gate=AS_INPUT,
)
rows(
    "added product",
    "addcmul",
    zero_to_zero=True,
    homogeneous=not_both((1, "tensor1"), (2, "tensor2")),
    keeps_sign=at_least_zero(lambda call: call.kwargs.get("value", 1)),
    gate=AS_INPUT,
)
rows(
    reduced,
    "index_reduce",
    "zero_to_zero keeps_sign",
    homogeneous=reduced_by("mean", "amax", "amin"),
    gate=AS_INPUT,
)
rows("sum", "diff", "homogeneous zero_to_zero")
rows("sum", "trapezoid trapz cumulative_trapezoid", zero_to_zero=True, homogeneous=not_both((0, "y"), (1, "x")))
rows(
    "sum",
    "norm vector_norm linalg_vector_norm linalg_norm linalg_matrix_norm frobenius_norm",
    "zero_to_zero never_negative",
    homogeneous=power_of_norm,
    gate=GATE,  # a statistic: what it multiplies is the signal
)
rows(
    "sum",
    "fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2 fft_rfftn "
    "fft_irfftn fft_hfft fft_ihfft fft_hfft2 fft_ihfft2 fft_hfftn fft_ihfftn stft istft",
    "homogeneous zero_to_zero",
)
rows("sampling", "grid_sampler grid_sampler_2d grid_sampler_3d", "zero_to_zero")
rows("conjugate", "conj conj_physical _conj _conj_physical", "homogeneous zero_to_zero")
rows("transpose", "H.get mH.get adjoint", "homogeneous zero_to_zero keeps_sign", gate=AS_INPUT)
rows("polar", "polar")

# ------------------------------------------------------------------------------------------------ products and layers

rows("product", "mul multiply __rmul__", "zero_to_zero keeps_sign")
rows("quotient", "div divide true_divide __rdiv__ __rtruediv__", "statistic")
rows("matrix product", "matmul mm bmm linalg_matmul", "zero_to_zero keeps_sign matrix_product")
rows("matrix product", "__rmatmul__ mv dot inner tensordot outer ger kron", "zero_to_zero keeps_sign")
rows("matrix product", "_sparse_mm", "zero_to_zero keeps_sign matrix_product")
rows("matrix product", "smm hspmm", "zero_to_zero keeps_sign")
rows("matrix product", "vdot linalg_vecdot cross linalg_cross", "zero_to_zero")
rows("einsum", "einsum", "zero_to_zero")
rows("added matrix product", "baddbmm addbmm", "zero_to_zero", factors=("batch1", "batch2"))
rows("added matrix product", "addmm _sparse_addmm", "zero_to_zero", factors=("mat1", "mat2"))
rows("added matrix product", "addmv", "zero_to_zero", factors=("mat", "vec"))
rows("added matrix product", "addr", "zero_to_zero", factors=("vec1", "vec2"))
rows("bilinear", "bilinear")
rows("experts", "grouped_mm _grouped_mm grouped_mm_fallback")
rows("product of all", "prod", "zero_to_zero keeps_sign")
rows("running product", "cumprod", "zero_to_zero keeps_sign")
rows("linear", "linear")
rows("convolution", "conv1d conv2d conv3d")
rows("transposed convolution", "conv_transpose1d conv_transpose2d conv_transpose3d")
rows("general convolution", "convolution _convolution")
rows("deformable convolution", "deform_conv2d")
rows("batch norm", "batch_norm")
rows("instance norm", "instance_norm")
rows("layer norm", "layer_norm")
rows("native layer norm", "native_layer_norm")
rows("rms norm", "rms_norm")
rows("group norm", "group_norm")
rows("gated linear unit", "glu", "zero_to_zero")
rows("softmax", "softmax _softmax", "never_negative", gate=GATE)
rows("log softmax", "log_softmax")
rows("attention", "scaled_dot_product_attention", "zero_to_zero")
rows("recurrent layers", "lstm gru rnn_tanh rnn_relu")
rows("recurrent cell", "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
rows(
    "steps",
    "cosine_similarity pairwise_distance cdist linalg_multi_dot var std",
)
rows("steps", "var_mean std_mean", "several")
rows("added quotient", "addcdiv")
#: Written in Python: their own code runs, with interception inside.
rows(
    "opened",
    "multi_head_attention_forward normalize local_response_norm lp_pool1d lp_pool2d lp_pool3d gumbel_softmax softmin",
)
rows("embedding", "embedding", MOVES, gate=AS_INPUT)
rows("embedding bag", "embedding_bag")

# ------------------------------------------------------------------------------------------------ values that move

rows(
    "routing", "view reshape permute transpose t T.get mT.get swapaxes swapdims movedim moveaxis", MOVES, gate=AS_INPUT
)
rows("routing", "flatten unflatten ravel squeeze unsqueeze expand broadcast_to", MOVES, gate=AS_INPUT)
rows("routing", "as_strided contiguous clone alias _unsafe_view rename refine_names", MOVES, gate=AS_INPUT)
rows("routing", "align_to names positive resolve_conj resolve_neg", MOVES, gate=AS_INPUT)
rows("routing", "view_as reshape_as expand_as type_as", MOVES, gate=AS_INPUT, shape_only=((1, "other"),))
rows("routing", "to", MOVES, gate=AS_INPUT, shape_only=((1, "other"),))
rows("routing", "type float double half bfloat16 cfloat cdouble chalf cuda cpu to_mkldnn", MOVES, gate=AS_INPUT)
rows("routing", "real.get imag.get real imag view_as_real view_as_complex complex", "homogeneous zero_to_zero")
rows("routing one by one", "broadcast_tensors atleast_1d atleast_2d atleast_3d meshgrid", MOVES, gate=AS_INPUT)
# joining and taking apart
rows("routing", "cat concat concatenate stack hstack vstack dstack row_stack column_stack", MOVES, gate=AS_INPUT)
rows("routing", "split chunk tensor_split hsplit", MOVES + " views", gate=AS_INPUT)
rows("routing", "vsplit dsplit split_with_sizes unbind", MOVES + " views", gate=AS_INPUT)
rows("routing", "unsafe_split unsafe_chunk block_diag cartesian_prod", MOVES, gate=AS_INPUT)
# indexing and copying
rows("routing", "__getitem__ select narrow index index_select gather take", MOVES, gate=AS_INPUT)
rows("routing", "take_along_dim masked_select", MOVES, gate=AS_INPUT)
rows("placing", "index_copy", MOVES, gate=AS_INPUT)
rows("routing", "masked_scatter slice_scatter select_scatter copy", MOVES, gate=AS_INPUT)
rows("routing", "diagonal_scatter zero tril triu diagonal", MOVES, gate=AS_INPUT)
rows("routing", "diag diagflat", MOVES, diagonal=makes_a_matrix, gate=AS_INPUT)
rows("routing", "diag_embed", MOVES, diagonal=on_the_main_diagonal, gate=AS_INPUT)
rows("routing", "unfold im2col repeat repeat_interleave tile flip fliplr flipud roll rot90", MOVES, gate=AS_INPUT)
rows("routing", "channel_shuffle pixel_shuffle pixel_unshuffle native_channel_shuffle", MOVES, gate=AS_INPUT)
rows("routing", "fft_fftshift fft_ifftshift", MOVES, gate=AS_INPUT)
rows("routing", "requires_grad_ __iter__ __reversed__ to_dense", MOVES, gate=AS_INPUT)
rows("routing", "_pack_padded_sequence _pad_packed_sequence pad_sequence", MOVES, gate=AS_INPUT)
# moving with a constant written beside
PUTS: dict[str, Any] = {"homogeneous": True, "gate": AS_INPUT}
rows("placing", "__setitem__", keeps_sign=written_value(2, "value"), **PUTS)
rows("routing", "masked_fill", keeps_sign=written_value(2, "value"), **PUTS)
rows("routing", "index_fill", keeps_sign=written_value(3, "value"), **PUTS)
rows("routing", "fill", keeps_sign=written_value(1, "value"), **PUTS)
rows("routing", "where", keeps_sign=at_least_zero(argument(1, "input"), argument(2, "other")), **PUTS)
rows("routing", "pad", keeps_sign=written_value(3, "value"), **PUTS)
rows("routing", "constant_pad_nd", keeps_sign=written_value(2, "value"), **PUTS)
rows("routing", "nan_to_num", keeps_sign=at_least_zero(argument(1, "nan"), argument(2, "posinf")), **PUTS)
rows(accumulates(3), "index_put put", MOVES, gate=AS_INPUT)
rows(
    scattered,
    "scatter",
    homogeneous=lambda call: scattered(call) in ("placing", "scattered sum"),
    keeps_sign=at_least_zero(argument(3, "value"), argument(3, "src")),
    gate=AS_INPUT,
)
# the winner takes all
WINS = {"gate": AS_INPUT, "maximum": True}
rows("routing", "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d", MOVES, **WINS)
rows("routing", "adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices", MOVES, **WINS)
rows("routing", "max_pool3d_with_indices amax", MOVES, **WINS)
rows(
    "routing",
    "fractional_max_pool2d fractional_max_pool3d fractional_max_pool2d_with_indices",
    MOVES,
    gate=AS_INPUT,
    random=lambda call: call.kwargs.get("_random_samples") is None,
)
rows("routing", "max_unpool1d max_unpool2d max_unpool3d", MOVES, gate=AS_INPUT)
rows("routing", "amin aminmax topk sort msort kthvalue median nanmedian", MOVES + " winner", gate=AS_INPUT)
rows("routing", "cummax cummin", MOVES + " winner", gate=AS_INPUT)
rows("routing", "mode", MOVES, gate=AS_INPUT)
rows("routing", "max maximum fmax", "keeps_sign winner", gate=AS_INPUT, limit="below")  # perhaps by a constant
rows("routing", "min minimum fmin", "keeps_sign winner", gate=AS_INPUT, limit="above")
# a soft winner takes all: its gradient is a softmax, which sums to one
rows("soft maximum", "logsumexp")
# a mask, and a constant that makes up for it; nothing where it is off
DROPS = {"gate": AS_INPUT, "random": drops_values}
rows("dropout", "dropout dropout1d dropout2d dropout3d feature_dropout", MOVES, **DROPS)
rows("dropout", "alpha_dropout feature_alpha_dropout", "homogeneous", **DROPS)

# ------------------------------------------------------------------------------------------------ no relevance

rows(
    "constant", "detach data.get detach_ argmax argmin argsort eq ne lt le gt ge isnan isinf isfinite sign signbit sgn"
)
rows("constant", "heaviside floor ceil round trunc fix one_hot bincount histc searchsorted bucketize")
rows("constant", "zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full")
rows("constant", "new_tensor size dim numel item tolist numpy __len__ __bool__ __int__ __float__ __index__")
rows("constant", "__contains__ __array__ __format__ __repr__ __str__ __hash__ __deepcopy__ __reduce_ex__")
rows("constant", "is_floating_point is_complex is_contiguous stride storage_offset data_ptr element_size get_device")
rows("constant", "is_cuda is_nonzero allclose equal isclose any all logical_and logical_or logical_not logical_xor")
rows("constant", "nonzero count_nonzero unique __invert__ is_signed is_same_size ndimension nelement type_check")
rows("constant", "is_inference is_set_to untyped_storage is_neg floor_divide _is_view retain_grad register_hook")
rows("constant", "long int short char byte bool")
rows("constant", "is_shared is_pinned is_coalesced has_names is_conj")
rows("constant", "multinomial bernoulli rand_like randn_like randint_like poisson", "random")
rows("constant", "rand randn randint randperm normal uniform exponential cauchy geometric log_normal random", "random")

#: Functions that hold values between bounds.
CLAMPS = frozenset(name for name, row in TABLE.items() if row.rectifier and name != "threshold")

# ------------------------------------------------------------------------------------------------ integers

#: How the integers of a trail pass a function (``engine/ids.py``), by the kind of function ...
WAYS_OF_KINDS = {
    **dict.fromkeys(("routing", "routing one by one", "transpose", "placing"), "moved"),
    **dict.fromkeys(("addition", "product", "quotient"), "by element"),
    "constant": "places",
}
#: ... and of functions by name where that is no answer; ``"lost"`` where they cannot be followed.
WAYS: dict[str, str] = {
    name: way
    for way, names_of_it in {
        "moved": "scatter scatter_add index_put",
        "by element": "floor_divide __rfloordiv__ remainder __rmod__ fmod pow __rpow__ clamp clamp_min clamp_max clip "
        "abs absolute neg negative bitwise_and bitwise_or bitwise_xor bitwise_not bitwise_left_shift "
        "bitwise_right_shift __and__ __or__ __xor__ __lshift__ __rshift__ __rand__ __ror__ __rxor__ maximum "
        "minimum square bucketize searchsorted floor ceil round trunc nan_to_num",
        "cast": "to type type_as long int short char byte float double half bfloat16 bool tensor as_tensor asarray",
        "same": "detach data.get alias real.get",
        "places": "zeros ones empty full eye arange isin shape requires_grad_ __ne__ __lt__ __le__ __gt__ __ge__",
        "python": "tolist item numpy __int__ __index__ __float__ __array__ __complex__",
        "reduced": "sum amax max any",
        "ordered": "sort topk kthvalue mode median cummax cummin",
        "looked up": "embedding",
        "bag": "embedding_bag",
        "one hot": "one_hot",
        "compared": "eq __eq__",
        "counted": "bincount",
        "walked": "__iter__",
        "lost": "as_strided unique histc fix im2col max_unpool1d max_unpool2d max_unpool3d",
    }.items()
    for name in names_of_it.split()
}


def way_of_integers(name: str) -> str:
    """How integers pass a function."""
    row = TABLE.get(name, NOTHING)
    if name in WAYS or callable(row.kind) or row.maximum or row.winner:
        return WAYS.get(name, "lost")
    return WAYS_OF_KINDS.get(row.kind, "lost")


#: Which arguments hold what a function moves, by position; () for all; the first where nothing is said.
MOVED_ARGUMENTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys("cat concat concatenate stack hstack vstack dstack row_stack column_stack".split(), (0,)),
    **dict.fromkeys("meshgrid cartesian_prod block_diag pad_sequence broadcast_tensors where".split(), ()),
    **dict.fromkeys("__setitem__ index_put masked_scatter masked_fill".split(), (0, 2)),
    **dict.fromkeys("scatter index_copy scatter_add scatter_reduce index_add index_fill".split(), (0, 3)),
    **dict.fromkeys("copy slice_scatter select_scatter diagonal_scatter".split(), (0, 1)),
}
#: Functions whose integers, beside activations, are numbers like them.
MIXED = frozenset(
    "add sub subtract rsub mul multiply div divide true_divide cat concat concatenate stack hstack vstack dstack where "
    "__radd__ __rsub__ __rmul__ __rtruediv__ __setitem__ copy maximum minimum".split()
)
#: Functions that cast or round: what an activation becomes by them may be ids.
CASTS = frozenset("long int short char byte to type type_as round floor ceil trunc fix".split())
#: What asks for shapes and the like, of activations as of integers.
SHAPES = frozenset(
    "size dim numel stride storage_offset data_ptr element_size get_device is_contiguous nelement ndimension __len__ "
    "is_floating_point is_complex is_same_size _is_view untyped_storage".split()
)

# ------------------------------------------------------------------------------------------------ more by name

#: Functions that take values out of the graph -> how a model writes them.
LEAVES_GRAPH = {
    **{name: f"{name}()" for name in ("detach", "numpy", "tolist", "item")},
    **{"data.get": ".data", "__array__": "numpy()", "__float__": "float()", "__complex__": "complex()"},
}
#: What would have something run, or be kept, when relevance reaches a tensor.
HOOKS = frozenset({"register_hook", "register_post_accumulate_grad_hook", "retain_grad"})
#: Operators that multiply or divide: they are also spelled in place (``__imul__``) and from the right (``__rmul__``).
FACTOR_OPERATORS = frozenset("mul div truediv matmul pow".split())
#: Functions that can spell a ReLU, beside those whose row says that they are one ...
SPELLS_RELU = frozenset(
    "maximum fmax max minimum fmin where mul multiply __rmul__ div divide true_divide add __radd__ sub subtract rsub "
    "__rsub__ neg negative masked_fill __setitem__ index_put clamp clip clamp_min leaky_relu prelu threshold "
    "hardtanh heaviside copysign lerp addcmul amax amin stack".split()
)
#: ... and those that can be a step on the way to one.
STEP_TO_RELU = SPELLS_RELU | {"abs", "absolute", "sign", "sgn"}
