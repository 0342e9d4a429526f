"""What an error says of a name that is not known."""

from __future__ import annotations

import pytest

from saliency_lrp.errors import InputError, ModelCallError, UnknownNameError, unknown_name


@pytest.mark.parametrize(("given", "near"), [("gama", "gamma"), ("Epsilon", "epsilon"), ("xyzzy", None), (3, None)])
def test_the_nearest_name_is_offered_and_all_are_listed(given, near):
    error = unknown_name("rule", given, {"gamma", "epsilon", "zplus"})
    assert str(error).startswith(f"unknown rule {given!r}.")
    assert (f"Did you mean {near!r}?" in str(error)) == (near is not None)
    assert str(error).endswith("Known: epsilon, gamma, zplus.")


def test_every_error_is_one_of_a_value_and_a_model_s_also_one_of_running():
    assert issubclass(UnknownNameError, InputError) and issubclass(InputError, ValueError)
    assert issubclass(ModelCallError, InputError) and issubclass(ModelCallError, RuntimeError)
