"""The vectorised exp, log, log1p and expm1 against 50-digit arithmetic, for every instruction set."""

import math

import mpmath
import pytest
import torch

from kullback.engines import cpu

pytestmark = pytest.mark.skipif(cpu.ABSENT is not None, reason=str(cpu.ABSENT))

ULP = {torch.float64: 2.0**-52, torch.float32: 2.0**-23}
FUNCTIONS = {"exp": mpmath.exp, "log": mpmath.log, "log1p": mpmath.log1p, "expm1": mpmath.expm1}


def apply(name, x):
    out = torch.empty_like(x)
    narrow = x.dtype == torch.float32
    cpu._cpu.apply(list(FUNCTIONS).index(name), narrow, x.data_ptr(), out.data_ptr(), x.numel())
    return out


def points(name, dtype):
    g = torch.Generator().manual_seed(0)
    u = torch.rand(300, generator=g, dtype=torch.float64)
    top = 87.0 if dtype == torch.float32 else 700.0
    if name == "exp":
        x = torch.cat([(2 * u - 1) * top, (2 * u - 1), (2 * u - 1) * 1e-6, torch.tensor([0.0]).double()])
    elif name == "log":
        x = torch.cat([torch.exp((2 * u - 1) * top), 1 + (2 * u - 1) * 1e-3, 1 + (u - 0.5), torch.ones(1).double()])
    elif name == "log1p":
        x = torch.cat([torch.expm1((2 * u - 1) * 3), (2 * u - 1) * 1e-9, u * 1e5])
    else:
        x = torch.cat([(2 * u - 1) * 1e-9, (2 * u - 1), (2 * u - 1) * 40])
    return x.to(dtype)


@pytest.mark.parametrize("instruction_set", cpu.instruction_sets())
@pytest.mark.parametrize("dtype", ULP, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_few_units_in_the_last_place(name, dtype, instruction_set):
    before = cpu.instruction_set()
    x = points(name, dtype)
    try:
        cpu.use_instruction_set(instruction_set)
        got = apply(name, x)
    finally:
        cpu.use_instruction_set(before)
    worst = 0.0
    with mpmath.workdps(50):
        for xi, yi in zip(x.tolist(), got.tolist(), strict=True):
            truth = FUNCTIONS[name](mpmath.mpf(xi))
            if abs(truth) > 1e-35:
                worst = max(worst, float(abs((mpmath.mpf(yi) - truth) / truth)))
            else:
                assert abs(yi - truth) < 1e-37
    assert worst < 4 * ULP[dtype]


@pytest.mark.parametrize("dtype", ULP, ids=str)
def test_special_values(dtype):
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0] * 3, dtype=dtype)
    for name, reference in (("exp", torch.exp), ("log", torch.log), ("expm1", torch.expm1)):
        torch.testing.assert_close(apply(name, special), reference(special), rtol=1e-6, atol=0, equal_nan=True)
    tiny = torch.finfo(dtype).tiny * torch.tensor([1.0, 0.5, 2.0**-20], dtype=dtype)
    torch.testing.assert_close(apply("log", tiny), torch.log(tiny), rtol=1e-6, atol=0)
