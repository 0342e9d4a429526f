"""Photographs, and the network that knows them."""

from __future__ import annotations

import pytest

from saliency_lrp import get_image_saliency_results, photographs


def test_photographs_and_classes():
    both, cat, *_ = photographs.photographs()
    assert both.image.size == (448, 448) and cat.image.size == (451, 300)
    names = photographs.class_names()
    assert len(names) == 1000 and all(names) and (names[285], names[967]) == ("Egyptian cat", "espresso")
    assert all(photograph.rival in names for photograph in photographs.photographs())


@pytest.mark.skipif(not photographs.is_installed(), reason="needs the extra 'demo'")
def test_the_network_knows_its_photographs():
    """What it answers is what is on them, and LRP finds the cat above and the cup below."""
    model = photographs.load_photo_model()
    both, cat, coffee, *_ = photographs.photographs()
    answers = {}
    for photograph, label in ((both, None), (both, both.rival), (cat, None), (coffee, None)):
        label = None if label is None else model.class_names.index(label)
        answers[photograph.name, label] = get_image_saliency_results(
            model, photograph.image, label=label, methods=["lrp"]
        )[0]
    named = [result.class_name for result in answers.values()]
    assert named == ["Egyptian cat", "cup", "Egyptian cat", "espresso"]
    upper, lower = ((result.signed_map.clip(0)) for (name, _), result in answers.items() if name == both.name)
    assert upper[:224].sum() > 0.8 * upper.sum() and lower[224:].sum() > 0.6 * lower.sum()
