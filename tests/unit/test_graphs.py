"""What is done to a captured graph, and the forms that ONNX has instead of torch's backward calls."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from saliency_lrp.graphs import constants, onnx
from tests.helpers.tiny import noise


def test_constants_are_computed_once():
    weight = noise(3, 3)

    def run(x):
        return x @ (weight.abs() + 1.0)

    graph = make_fx(run)(noise(2, 3))
    folded = constants.fold_constants(graph)
    names = [node.target for node in folded.graph.nodes if node.op == "call_function"]
    assert names == [torch.ops.aten.mm.default]
    torch.testing.assert_close(folded(noise(2, 3, seed=1)), run(noise(2, 3, seed=1)))


def test_parameters_become_constants_on_the_models_memory():
    layer = nn.Linear(3, 2).double()
    graph = constants.without_parameters(make_fx(lambda x: layer(x))(noise(1, 3)))
    assert not list(graph.parameters())
    assert {b.data_ptr() for b in graph.buffers()} == {layer.weight.data_ptr(), layer.bias.data_ptr()}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (3, 2, 2)])
def test_the_backward_of_a_convolution(transposed, stride, padding, dilation):
    """Against autograd, also where the stride leaves pixels over."""
    w, x = noise(4, 4, 3, 3), noise(2, 4, 9, 8, seed=1).requires_grad_()
    function = nn.functional.conv_transpose2d if transposed else nn.functional.conv2d
    out = function(x, w, stride=stride, padding=padding, dilation=dilation)
    c = noise(*out.shape, seed=2)
    got, *_ = onnx.convolution_backward(
        c, x.detach(), w, None, [stride], [padding], [dilation], transposed, [0], 1, [True, False, False]
    )
    torch.testing.assert_close(got, torch.autograd.grad(out, x, c)[0])


def test_the_backward_of_pools_and_thresholds():
    x = noise(2, 3, 6, 6).requires_grad_()
    out, indices = nn.functional.max_pool2d(x, 3, 1, return_indices=True)
    c = noise(*out.shape, seed=1)
    got = onnx.max_pool2d_with_indices_backward(c, x.detach(), 3, 1, 0, 1, False, indices)
    torch.testing.assert_close(got, torch.autograd.grad(out, x, c)[0])
    out = nn.functional.avg_pool2d(x, 2)
    c = noise(*out.shape, seed=2)
    got = onnx.avg_pool2d_backward(c, x.detach(), [2, 2], [], [0, 0], False, True, None)
    torch.testing.assert_close(got, torch.autograd.grad(out, x, c)[0])
    c = noise(*x.shape, seed=3)
    torch.testing.assert_close(onnx.threshold_backward(c, x.detach(), 0.0), torch.autograd.grad(x.relu(), x, c)[0])
