"""A captured graph as ONNX: forms of ATen calls that ONNX has no operator for, and the writer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import InputError
from .constants import without_parameters

aten = torch.ops.aten


def convolution_backward(
    c: Tensor, x: Tensor, w: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, mask: Any,
) -> tuple[Tensor | None, None, None]:  # fmt: skip
    """The gradient of a convolution's input is a transposed convolution, and the other way round."""
    if mask[1] or mask[2]:
        raise NotImplementedError
    n = w.dim() - 2
    stride, padding, dilation = ([*v] * n if len(v) == 1 else [*v] for v in (stride, padding, dilation))
    if transposed:
        return aten.convolution(c, w, None, stride, padding, dilation, False, [0] * n, groups), None, None
    reached = [
        (c.shape[2 + k] - 1) * stride[k] - 2 * padding[k] + dilation[k] * (w.shape[2 + k] - 1) + 1 for k in range(n)
    ]
    missing = [x.shape[2 + k] - reached[k] for k in range(n)]
    return aten.convolution(c, w, None, stride, padding, dilation, True, missing, groups), None, None


def max_pool2d_with_indices_backward(
    c: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, indices: Tensor
) -> Tensor:
    """Each winner gets the sum over its windows."""
    flat = torch.zeros_like(x).flatten(2)
    return flat.scatter_add(2, indices.flatten(2), c.flatten(2)).reshape(x.shape)


def adaptive_max_pool2d(x: Tensor, size: Any) -> Any:
    """One window over everything; other sizes stay."""
    if list(size) != [1, 1]:
        return NotImplemented
    values, indices = x.flatten(2).max(-1)
    return values[:, :, None, None], indices[:, :, None, None]


def adaptive_max_pool2d_backward(c: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """Each winner gets the sum over its windows."""
    return torch.zeros_like(x).flatten(2).scatter_add(2, indices.flatten(2), c.flatten(2)).reshape(x.shape)


def threshold_backward(c: Tensor, x: Tensor, threshold: float) -> Tensor:
    """``c`` where ``x`` is above the threshold."""
    return torch.where(x > threshold, c, torch.zeros_like(c))


def avg_pool2d_backward(
    c: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil: bool, count_include_pad: bool, divisor: Any
) -> Tensor:
    """A transposed convolution of every channel with the window's weights."""
    if ceil or (any(padding) and not count_include_pad):
        raise NotImplementedError
    stride = stride or kernel
    size = divisor or kernel[0] * kernel[1]
    w = torch.full((x.shape[1], 1, *kernel), 1.0 / size, dtype=c.dtype)
    return convolution_backward(
        c, x, w, None, stride, padding, [1, 1], False, [0, 0], x.shape[1], [True, False, False]
    )[0]  # type: ignore[return-value]


def attention_on_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float = 0.0,
    causal: bool = False,
    attn_mask: Any = None,
    scale: Any = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention by its parts; and the logarithm of the sums of its weights."""
    scores = scaled_scores(q, k, causal, attn_mask, scale)
    return torch.softmax(scores, -1) @ v, torch.logsumexp(scores, -1)


def attention_on_cpu_backward(
    c: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, dropout: float, causal: bool,
    attn_mask: Any = None, scale: Any = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Its derivative, by the same parts."""
    weights = torch.softmax(scaled_scores(q, k, causal, attn_mask, scale), -1)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    by_weights = c @ v.mT
    by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdim=True)) * factor
    return by_scores @ k, by_scores.mT @ q, weights.mT @ c


def scaled_scores(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None, scale: float | None) -> Tensor:
    """Products of queries and keys, scaled and masked."""
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        allowed = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores if mask is None else scores + mask


def copysign(size: Tensor, sign: Any) -> Tensor:
    """The size of one value with the sign of the other; ONNX has no negative zeros."""
    return torch.where(torch.as_tensor(sign) < 0, -size.abs(), size.abs())


def signbit(x: Tensor) -> Tensor:
    """Whether values are negative."""
    return x < 0


#: ATen calls that ONNX has no form of, in terms of others that it has.
IN_ONNX: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: convolution_backward,
    aten.max_pool2d_with_indices_backward.default: max_pool2d_with_indices_backward,
    aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
    aten.adaptive_max_pool2d_backward.default: adaptive_max_pool2d_backward,
    aten.threshold_backward.default: threshold_backward,
    aten.copysign.Tensor: copysign,
    aten.signbit.default: signbit,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten._scaled_dot_product_flash_attention_for_cpu.default: attention_on_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: attention_on_cpu_backward,
}


def root_of(error: BaseException) -> BaseException:
    """What an error was first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def to_onnx(
    graph: fx.GraphModule,
    arguments: tuple[Tensor, ...],
    path: str | os.PathLike[str],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> None:
    """Write a captured graph as an ONNX file, weights inside.

    Raises
    ------
    InputError
        Where ``onnx`` is not installed, and for an operator that has no form in ONNX.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError("writing ONNX needs onnx and onnxscript: pip install 'saliency-lrp[onnx]'") from error
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the exporter, about torch's own insides
            plain = without_parameters(make_fx(graph, decomposition_table=IN_ONNX)(*arguments))
            program = torch.export.export(plain, arguments, strict=False)
            written = torch.onnx.export(
                program,
                dynamo=True,
                input_names=list(input_names),
                output_names=list(output_names),
                verbose=False,
                optimize=False,  # the exporter's optimizer takes a sum with 1e-12, which guards a division, for nothing
            )
    except (RuntimeError, NotImplementedError, torch.onnx.OnnxExporterError) as error:
        said = " ".join(str(root_of(error)).split())
        raise InputError(
            f"this explanation cannot be written as ONNX: some of its operators have no form there ({said:.300})"
        ) from error
    assert written is not None
    written.save(os.fspath(path), external_data=False)
