"""Questions about values, while a graph is captured and otherwise."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from saliency_lrp.values import captured, holds, is_captured, of_the_example


@pytest.mark.parametrize("unknown", [True, False])
def test_values_are_asked_outside_a_capture_alone(unknown):
    asked = []
    assert holds(lambda: asked.append(1) or torch.tensor(True), unknown=unknown)
    with captured():
        assert holds(lambda: asked.append(2), unknown=unknown) == unknown
    assert asked == [1] and not is_captured()


def test_a_capture_is_of_its_thread_and_ends_with_an_error():
    seen = []
    with pytest.raises(ZeroDivisionError), captured():
        thread = threading.Thread(target=lambda: seen.append(is_captured()))
        thread.start()
        thread.join()
        assert is_captured()
        raise ZeroDivisionError
    assert seen == [False] and not is_captured()


def test_what_is_seen_of_the_example_is_no_part_of_the_graph():
    def run(x):
        with captured(), of_the_example():
            largest = float(torch.tensor([1.0, 2.0]).max())
        return x * largest

    graph = make_fx(run)(torch.ones(2))
    assert [node.target for node in graph.graph.nodes if node.op == "call_function"] == [torch.ops.aten.mul.Tensor]
