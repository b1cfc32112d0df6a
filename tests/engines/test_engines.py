"""Every engine computes what the specification in `core` says, however it cuts the work up."""

import itertools
import subprocess
import sys

import pytest
import torch

from cases import CASES, FORMS, forms, leaves, normal
from kullback import Labels, Logits, kl
from kullback.core import reduction
from kullback.divergences import TABLE, Divergence
from kullback.engines import eager
from kullback.verbs import measure

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture
def digits(engine):
    """How far float64 results of an engine may be from core's: eager runs core itself, cpu has its own exp and log."""
    return {"rtol": 1e-14, "atol": 0.0} if engine == "eager" else {"rtol": 1e-9, "atol": 1e-13}


def specified(divergence: Divergence, p, q):
    batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    return divergence.finish(*(reduction.rows(total, p.side(batch), q.side(batch)) for total in divergence.sums))


@pytest.mark.parametrize("names", list(itertools.product(FORMS, FORMS)), ids="-".join)
def test_values_are_those_of_the_specification(divergence, names, digits):
    for case in CASES:
        if case.big and names != ("Logits", "Logits"):
            continue
        p, q = forms(case, names)
        # blocks change the order of no sum over columns; SIMD may: a few eps
        torch.testing.assert_close(measure(divergence, p, q), specified(divergence, p, q), **digits)


@pytest.mark.parametrize("dense_first", [True, False])
def test_values_against_labels_are_those_of_the_specification(divergence, dense_first, digits):
    sides = Logits(normal(2, 3, 5, seed=1)), Labels([0, 4, 2], 5, 0.1)
    p, q = sides if dense_first else sides[::-1]
    torch.testing.assert_close(measure(divergence, p, q), specified(divergence, p, q), **digits)


@pytest.mark.parametrize("cells", [1, 7, 30, 1 << 30])
def test_the_size_of_a_block_does_not_matter(divergence, cells, monkeypatch):
    def everything():
        results = []
        for case in CASES:
            if case.big:
                continue
            x, y = leaves(case)
            value = measure(divergence, Logits(x), Logits(y))
            results += [value.detach(), *torch.autograd.grad(value.sum(), (x, y))]
        return results

    whole = everything()
    monkeypatch.setattr(eager, "BLOCK_CELLS", cells)
    for cut, one in zip(everything(), whole, strict=True):
        torch.testing.assert_close(cut, one, rtol=1e-13, atol=1e-300)


def test_more_rows_than_a_grid_dimension_holds():
    p, q = forms(next(c for c in CASES if c.name == "more_than_65535_rows"))
    value = kl(p, q)
    for at in (0, 65_535, 65_536):
        assert value[at].item() == pytest.approx(kl(Logits(p.data[at]), Logits(q.data[at])).item(), rel=1e-14)


MEASURE = """
import resource, torch
from kullback import Logits, kl
torch.set_num_threads(1)
torch.manual_seed(0)
warm = torch.randn(4, 1000, requires_grad=True)
kl(Logits(warm), Logits(warm.detach())).sum().backward()
a, b = torch.randn({rows}, 32000), torch.randn({rows}, 32000, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
value = kl(Logits(a), Logits(b))
{backward}
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True])
def test_temporaries_do_not_grow_with_the_batch(backward):
    """Peak growth over 128 rows, 16 MB an input; all rows at once, temporaries would take 900 MB. Blocks of 4 rows take
    about 40 MB; backward adds the gradient, and its parts before they are joined: two more inputs.
    """
    rows, size = 128, 128 * 32000 * 4
    code = MEASURE.format(rows=rows, backward="value.sum().backward()" if backward else "")
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown < 60_000_000 + (2.2 * size if backward else 0)


def test_rows_of_the_table_are_hashable_so_that_graphs_can_be_cached():
    for row in TABLE:
        assert hash(row) == hash(row)
        assert len({row, row}) == 1
