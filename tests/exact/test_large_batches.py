"""Many pairs of Normals: the blocked path against the plain formula."""

import math

import pytest
import torch
import torch.distributions as td

from kullback import kl
from kullback.exact.closed_form.normal import BLOCK, is_large

ROWS = 40_000  # a full block and part of one


def mixed(scale):
    other = scale.clone()
    other[10_000:20_000] *= 1.0 + 1e-4
    other[20_000:30_000] *= 0.3
    other[30_000:] *= 1e18
    return other


def near(scale):
    """Every |σp/σq - 1| below 1/8, down to 1e-9."""
    step = 0.1 * 10.0 ** -torch.linspace(0.0, 8.0, ROWS, dtype=scale.dtype)
    return scale * (1.0 + torch.where(torch.arange(ROWS) % 3 == 0, -step, step))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [mixed, near])
def test_large_batches_follow_the_formula(kind, dtype):
    """Value, gradient, second derivative; equal, near, far, extreme scales."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(ROWS, generator=generator, dtype=dtype) + 0.1
    loc = torch.randn(ROWS, generator=generator, dtype=dtype)
    shift = (torch.arange(ROWS) % 2) * 1e-3
    leaves = [x.requires_grad_() for x in (loc, scale, loc.detach() + shift.to(dtype), kind(scale).detach())]
    picked = torch.arange(0, ROWS, 199)

    def value_of(at):
        a, s, b, t = (x[at] for x in leaves)
        assert is_large(a, s, b, t) == (len(at) == ROWS)
        return kl(td.Normal(a, s, validate_args=False), td.Normal(b, t, validate_args=False))

    blocked, plain = value_of(torch.arange(ROWS))[picked], value_of(picked)
    # u - log(1 + u) above |u| = 1e-3 leaves 4e-13; float32 rounds the results only
    torch.testing.assert_close(blocked, plain, rtol=1e-12 if dtype == torch.float64 else 1.2e-7, atol=0.0)
    assert (blocked >= 0).all()
    assert (blocked[(leaves[3] == scale)[picked] & (picked % 2 == 0)] == 0).all()
    once = torch.autograd.grad(blocked.sum(), leaves, retain_graph=True)
    first = [torch.autograd.grad(v.sum(), leaves, create_graph=True) for v in (blocked, plain)]
    second = [torch.autograd.grad(sum((g**2).sum() for g in side), leaves) for side in first]
    for x, y in (*zip(once, first[1], strict=True), *zip(*first, strict=True), *zip(*second, strict=True)):
        torch.testing.assert_close(x, y, rtol=1e-11 if dtype == torch.float64 else 1e-5, atol=1e-11)


def test_broadcast_strided_and_frozen_inputs():
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(BLOCK // 64, 200, generator=generator).double()[:, ::2].requires_grad_()
    scale = (torch.rand(BLOCK // 64, 1, generator=generator) + 0.5).requires_grad_()
    prior = td.Normal(torch.zeros(()), torch.tensor(1.5), validate_args=False)
    p = td.Normal(loc, scale.expand(loc.shape), validate_args=False)
    value = kl(p, prior)
    assert value.shape == loc.shape
    assert value.dtype == torch.float64
    weight = torch.randn(loc.shape, generator=generator).double()
    row = 7
    alone = kl(td.Normal(loc[row], scale[row].expand(100), validate_args=False), prior)
    torch.testing.assert_close(value[row], alone, rtol=1e-12, atol=0.0)
    to_loc, to_scale = torch.autograd.grad((weight * value).sum(), (loc, scale))
    want_loc, want_scale = torch.autograd.grad((weight[row] * alone).sum(), (loc, scale))
    torch.testing.assert_close(to_loc[row], want_loc[row], rtol=1e-12, atol=0.0)
    torch.testing.assert_close(to_scale[row], want_scale[row], rtol=1e-6, atol=0.0)


def test_a_row_of_nan_leaves_its_block_alone():
    scale = torch.ones(ROWS, dtype=torch.float64)
    other = scale.clone()
    other[0], other[1], other[2] = math.nan, 1e20, 1.0 + 1e-8
    value = kl(td.Normal(0.0, scale, validate_args=False), td.Normal(0.0, other, validate_args=False))
    assert math.isnan(value[0])
    assert value[1].item() == pytest.approx(math.log(1e20) - 0.5, rel=1e-15)
    assert value[2].item() == pytest.approx(1e-16, rel=1e-7)
    assert (value[3:] == 0).all()
