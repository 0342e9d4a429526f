"""What a call keeps: activations as slots, constants as they were."""

from __future__ import annotations

import torch

from saliency_lrp.sites.call import held_among, stored
from saliency_lrp.sites.site import Slot, as_reals, fill, from_reals
from saliency_lrp.sites.tag import tag_of
from tests.helpers.tiny import noise


def test_activations_become_slots_and_constants_are_held():
    a, b, constant = noise(2), noise(2, seed=1), noise(2, seed=2)
    kept = stored((a, [constant, b], 3, "same"), [a, b])
    assert isinstance(kept[0], Slot) and isinstance(kept[1][1], Slot)
    other, another = noise(2, seed=3), noise(2, seed=4)
    back = fill(kept, [other, another])
    assert back[0] is other and back[1][1] is another and back[2:] == (3, "same")
    assert torch.equal(back[1][0], constant)


def test_a_constant_can_get_a_copy_before_it_is_written_into():
    constant = noise(2)
    kept = stored([constant, 1.0], [])
    (held,) = held_among(kept)
    held.keep(0, constant.clone())
    constant.zero_()
    assert fill(kept, [])[0].abs().sum() > 0


def test_complex_numbers_are_pairs():
    z = torch.complex(noise(2, 3), noise(2, 3, seed=1))
    assert as_reals(z).shape == (2, 3, 2) and torch.equal(from_reals(as_reals(z)), z)
    assert torch.equal(as_reals(z.conj())[..., 1], -as_reals(z)[..., 1])
    assert as_reals(noise(2)).shape == (2,)


def test_a_tensor_that_nobody_saw_has_no_tag():
    assert tag_of(noise(2)) is None
