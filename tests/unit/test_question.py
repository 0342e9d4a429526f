"""One model, one input, one class: asked once, for every door."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from saliency_lrp.errors import InputError
from saliency_lrp.question import Question, ask, is_model_input
from tests.helpers.tiny import count_passes


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(27, 4))


def test_the_model_is_asked_once_whoever_asks():
    model = net()
    passes = count_passes(model)
    with ask(model, None, torch.randn(2, 3, 3, 3), -1, None, {"class_names": "abcd"}) as question:
        question.settle()
        question.settle()
    assert len(passes) == 1 and model.training
    assert question.label.tolist() == [3, 3] and question.target == 3
    assert question.answer.name() == "d"


def test_an_output_that_is_there_is_not_made_again():
    model, x = net(), torch.randn(1, 3, 3, 3)
    passes = count_passes(model)
    question = Question(model, x, None)
    question.learn(torch.tensor([[0.0, 2.0, 1.0, 0.0]]))
    question.settle()
    assert not passes and question.target == 1


def test_a_callable_has_no_answer():
    question = Question(net(), torch.randn(1, 3, 3, 3), lambda out: out[:, 0])
    question.settle()
    assert question.answer is None and callable(question.target)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (torch.rand(3, 4, 4), False),  # a picture
        (torch.rand(1, 3, 4, 4), False),
        (torch.rand(2, 3, 4, 4), True),  # a batch
        (torch.rand(3, 4, 4) - 0.5, True),  # normalized
        (torch.rand(1, 8), True),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), False),
        (np.zeros((4, 4, 3)), False),
    ],
)
def test_what_is_no_picture(raw, expected):
    assert is_model_input(raw) is expected


def test_a_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match="no CUDA device"), ask(net(), None, torch.rand(1, 3, 3, 3), 0, "cuda", {}):
        pass
