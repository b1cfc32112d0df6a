"""What Hypothesis draws: pairs of rows of scores."""

import math

import torch
from hypothesis import strategies as st

score = st.one_of(st.floats(-30, 30), st.just(-math.inf))


few = st.integers(1, 7)


@st.composite
def pairs(draw, score=score, classes=few):
    """Two rows of scores with mass somewhere; now and then the second is the first, moved a little or not at all."""
    v = draw(classes)
    row = st.lists(score, min_size=v, max_size=v).filter(lambda r: max(r) > -math.inf)
    p = draw(row)
    how = draw(st.sampled_from(["free", "free", "near", "equal"]))
    if how == "free":
        q = draw(row)
    else:
        step = draw(st.sampled_from([1e-9, 1e-5, 1e-2])) if how == "near" else 0.0
        q = [a + step * draw(st.floats(-1, 1)) for a in p]
    return torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
