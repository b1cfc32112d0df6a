"""A divergence of one's own: Neyman's χ², Σ (p - q)² / p. One formula, one row; nothing of the package is touched."""

import math

import torch

from kullback.extend import Divergence, Generator, GeneratorSum, Scaled, Tail, Terms, growth


def terms(cells, _):
    """(q - p)² / p with its logarithmic derivatives p ∂f/∂p and q ∂f/∂q, accurate near p = q."""
    g = growth(cells.p, cells.q, cells.d)  # q - p without cancellation
    ratio = torch.expm1(cells.d)  # (q - p) / p
    return Terms(g * ratio, -g * (ratio + 2.0), 2.0 * cells.q * ratio)


GENERATOR = Generator("neyman_chi2", terms, at_p_zero=math.inf, at_q_zero=1.0, slopes=(0.0, -2.0))

NEYMAN_CHI2 = Divergence(
    "neyman_chi2",
    None,
    "Σ (p - q)² / p",
    (GeneratorSum(GENERATOR),),
    Scaled(),
    math.inf,
    False,
    "Neyman 1949",
    logarithmic=False,
)

TRIANGULAR = Divergence(
    "my_triangular",
    None,
    "Σ (p - q)² / (p + q)",
    (
        GeneratorSum(
            Generator(
                "my_triangular",
                lambda c, _: Terms(
                    growth(c.p, c.q, c.d) * torch.tanh(c.d / 2),
                    -c.p * torch.tanh(c.d / 2) * (2.0 + torch.tanh(c.d / 2)),
                    c.q * torch.tanh(c.d / 2) * (2.0 - torch.tanh(c.d / 2)),
                ),
                at_p_zero=1.0,
                at_q_zero=1.0,
                slopes=(-3.0, -3.0),
                tail=Tail(),  # a term is at most p + q: sums over infinitely many points may be bounded
            )
        ),
    ),
    Scaled(),
    2.0,
    True,
    "Le Cam 1986",
    logarithmic=False,
)
