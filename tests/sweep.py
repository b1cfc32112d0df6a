"""Every pair of families on one space: the pairs of tests/exact/sweep.json as distributions, and their errors."""

import json
import math
from pathlib import Path

import torch
import torch.distributions as td
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

import kullback as kb

ROWS = json.loads((Path(__file__).parent / "exact" / "sweep.json").read_text())
# as in tests/exact/make_sweep.py: how parameters move, p's from the first on and q's from the fourth, and which do not
DIRECTION = (0.5, -0.35, 0.25, -0.3, 0.4, 0.2)
FIXED = {("GeneralizedPareto", "q"): (0,), ("Binomial", "p"): (0,), ("Binomial", "q"): (0,)}


def name_of(row):
    return f"{row['p']}‖{row['q']}"


def _build(family, parameters, dtype):
    plain = {"validate_args": False}
    unit = td.Uniform(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype), **plain)
    if family == "Logistic":
        return td.TransformedDistribution(unit, [td.SigmoidTransform().inv], **plain)
    if family == "Uniform":
        return unit
    if family == "LogitRelaxedBernoulli":
        return LogitRelaxedBernoulli(parameters[0], logits=parameters[1], **plain)
    if family == "RelaxedBernoulli":
        return td.RelaxedBernoulli(parameters[0], logits=parameters[1], **plain)
    return getattr(td, family)(*parameters, **plain)


def derivatives(row, verb, dtype):
    """Value, slope and curvature along the direction, by autograd."""
    epsilon = torch.zeros((), dtype=dtype, requires_grad=True)

    def side(name, family, values):
        shift, fixed = 0 if name == "p" else 3, FIXED.get((family, name), ())
        moved = [
            torch.tensor(float(x), dtype=dtype) + (0.0 if i in fixed else epsilon * DIRECTION[i + shift])
            for i, x in enumerate(values)
        ]
        return _build(family, moved, dtype)

    value = getattr(kb, verb)(side("p", row["p"], row["a"]), side("q", row["q"], row["b"]))
    if not value.requires_grad:
        return value.item(), 0.0, 0.0
    (slope,) = torch.autograd.grad(value, epsilon, create_graph=True)
    curvature = torch.autograd.grad(slope, epsilon)[0].item() if slope.requires_grad else 0.0
    return value.item(), slope.item(), curvature


def errors(row, verb, dtype):
    """Relative; of slope and curvature, to the largest of the three. inf: a wrong infinity or NaN."""
    truth, found = [float(x) for x in row[verb]], derivatives(row, verb, dtype)
    scale = max(abs(x) for x in truth if math.isfinite(x)) or 1.0
    result = []
    for k, (right, got) in enumerate(zip(truth, found, strict=True)):
        if right == got:
            result.append(0.0)
        elif not (math.isfinite(right) and math.isfinite(got)):
            result.append(math.inf)
        else:
            result.append(abs(got - right) / (abs(right) if k == 0 else scale))
    return result
