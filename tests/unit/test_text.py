"""Words coloured by relevance."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from saliency_lrp.errors import InputError
from saliency_lrp.text import show_text


def strengths(page):
    return [float(x) for x in re.findall(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", page)]


def test_color_follows_sign_and_size():
    page = show_text(["good", "but", "dull"], [2.0, 0.0, -1.0], title="positive")._repr_html_()
    assert strengths(page) == [1.0, 0.0, 0.5]
    spans = re.findall(r"<span title='R ([^']+)' style='([^']+)'>([^<]+)</span>", page)
    assert [(value, word) for value, _, word in spans] == [("+2", "good"), ("+0", "but"), ("-1", "dull")]
    assert "214,96,77" in spans[0][1] and "67,147,195" in spans[2][1]
    assert "positive" in page and "+1" in page


def test_embedding_relevance_is_summed_over_features():
    text = show_text(["a", "b"], torch.tensor([[1.0, 2.0], [0.5, -2.5]]))
    np.testing.assert_allclose(text.relevance, [3, -2])


def test_subword_tokens_read_as_words():
    page = show_text(["un", "##believ", "##able", "▁film", "Ġindeed"], [1, 1, 1, 1, 1])._repr_html_()
    words = re.sub(r"<p.*", "", re.sub(r"</?span[^>]*>|</?div[^>]*>", "", page)).strip()
    assert words == "unbelievable film indeed"


def test_markup_in_the_text_is_not_markup():
    page = show_text(["<b>", "&"], [1, 2], title="<script>")._repr_html_()
    assert "<b>" not in page and "<script>" not in page and "&lt;b&gt;" in page


def test_a_text_without_relevance_is_plain_and_repr_is_stable():
    text = show_text(["a", "b"], [0.0, 0.0])
    assert strengths(text._repr_html_()) == [0, 0]
    assert repr(show_text(["a", "b"], [0.5, -1.0])) == "RelevantText(2 tokens; strongest: b -1, a +0.5)"


@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0]], [1.0, np.nan]])
def test_what_does_not_fit_is_refused(values):
    with pytest.raises(InputError):
        show_text(["a", "b"], values)
