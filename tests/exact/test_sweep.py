"""Every pair of families on one space: value, slope and curvature of KL and JS against mpmath (make_sweep.py)."""

import pytest
import torch

from sweep import ROWS, errors, name_of

# the integrals' tolerance is 1e-10 for the value; panels are chosen for the value, derivatives lose some digits.
# float32: parameters are rounded to 6e-8, and the largest condition number here is some 100
BUDGET = {torch.float64: (1e-9, 1e-7, 1e-7), torch.float32: (1e-5, 1e-5, 1e-5)}


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_pair_in_value_slope_and_curvature(row):
    for verb in ("kl", "js"):
        for dtype, budget in BUDGET.items():
            found = errors(row, verb, dtype)
            assert all(error <= allowed for error, allowed in zip(found, budget, strict=True)), (verb, dtype, found)
