"""Deprecated calls by our code are errors in the tests (pyproject.toml)."""

import warnings

import pytest

OURS = "espnet_kd.losses.path"


@pytest.mark.parametrize(
    "category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning]
)
def test_a_deprecated_call_of_ours_is_an_error(category: type[Warning]):
    with pytest.raises(category):
        warnings.warn_explicit("gone in 9.0", category, "path.py", 1, module=OURS)


def test_so_is_one_that_torch_reports_as_a_user_warning():
    text = "torch.x is deprecated and will be removed"
    with pytest.raises(UserWarning):
        warnings.warn_explicit(text, UserWarning, "path.py", 1, module=OURS)


def test_others_only_warn():
    with pytest.warns(FutureWarning):
        warnings.warn_explicit("gone", FutureWarning, "x.py", 1, module="espnet2.x")
