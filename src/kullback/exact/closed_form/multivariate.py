"""Vectors and matrices: multivariate Normals in their three parameterisations, Wishart.

Everything goes through Cholesky factors in float64. With M = Lq^-1 Lp, lower triangular, the trace and the determinants
combine to Σ_i rise(2 log m_ii) + Σ_(i>j) m_ij², a sum of non-negative terms; below the diagonal M = Lq^-1 (Lp - Lq),
which keeps its digits for nearly equal factors.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, Wishart

from kullback._errors import FormError
from kullback.exact.registry import closed_form, doubles, infinite_where
from kullback.exact.shapes import together
from kullback.exact.special import LOG_2PI_E, log_ratio, rise

from . import low_rank
from .gamma import gamma
from .location import jensen_gap

_SOURCE = "Kullback 1959, section 9.1; Duchi 2007"


class Factor(NamedTuple):
    """Mean (..., d) and Cholesky factor (..., d, d)."""

    loc: Tensor
    tril: Tensor


def scale_tril(d: MultivariateNormal | Wishart) -> Tensor:
    """The Cholesky factor in float64 from whichever matrix was given; PyTorch caches the others, rounded."""
    state, made = d.__dict__, d._unbroadcasted_scale_tril
    for name in ("covariance_matrix", "precision_matrix"):
        if name not in state:
            continue
        given = state[name]
        if "scale_tril" in state and not _is_made_from(given, made, name):
            continue
        matrix = given.double()
        if name == "precision_matrix":
            matrix = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        factor_of: Tensor = torch.linalg.cholesky(matrix)
        return factor_of
    return made.double().tril()  # no gradient to what is above the diagonal


def _is_made_from(given: Tensor, made: Tensor, name: str) -> bool:
    if name == "precision_matrix":
        return False
    with torch.no_grad():
        factor, failed = torch.linalg.cholesky_ex(given)
        return not bool(failed.any()) and torch.equal(factor, made.expand_as(factor))


def factor(d: Any) -> Factor:
    """Mean and factor of any of the three."""
    if isinstance(d, Independent):
        loc, scale = doubles(d.base_dist, "loc", "scale")
        return Factor(loc, torch.diag_embed(scale))
    (loc,) = doubles(d, "loc")
    if isinstance(d, LowRankMultivariateNormal):
        w, diagonal = d._unbroadcasted_cov_factor.double(), d._unbroadcasted_cov_diag.double()
        return Factor(loc, torch.linalg.cholesky(w @ w.mT + torch.diag_embed(diagonal)))
    return Factor(loc, scale_tril(d))


def _same_size(p: Tensor, q: Tensor) -> None:
    if p.shape[-1] != q.shape[-1]:
        raise FormError(f"kl: p has {p.shape[-1]} dimensions but q has {q.shape[-1]}.")


def whitened(lp: Tensor, lq: Tensor) -> tuple[Tensor, Tensor]:
    """(2 log m_ii, Σ_(i>j) m_ij²) of M = Lq^-1 Lp."""
    lp, lq = together(lp, lq)
    log_square = 2.0 * log_ratio(lp.diagonal(dim1=-2, dim2=-1), lq.diagonal(dim1=-2, dim2=-1))
    below = torch.linalg.solve_triangular(lq, lp - lq, upper=False).tril(-1)
    return log_square, (below**2).sum((-2, -1))


def mvn(p: Factor, q: Factor) -> Tensor:
    """½ [Σ rise(2 log m_ii) + Σ_(i>j) m_ij² + |Lq^-1 (μp - μq)|²]."""
    _same_size(p.loc, q.loc)
    log_square, below = whitened(p.tril, q.tril)
    gap = torch.linalg.solve_triangular(q.tril, (p.loc - q.loc).unsqueeze(-1), upper=False).squeeze(-1)
    value: Tensor = 0.5 * (rise(log_square).sum(-1) + below + (gap**2).sum(-1))
    return value


def is_normal_vector(d: object) -> bool:
    """Whether `factor` takes it: a multivariate Normal, or independent Normals along one axis."""
    if isinstance(d, Independent):
        return isinstance(d.base_dist, Normal) and d.reinterpreted_batch_ndims == 1
    return isinstance(d, MultivariateNormal | LowRankMultivariateNormal)


def _are_normal_vectors(p: object, q: object) -> bool:
    return is_normal_vector(p) and is_normal_vector(q)


def mvn_mvn(
    p: MultivariateNormal | LowRankMultivariateNormal, q: MultivariateNormal | LowRankMultivariateNormal
) -> Tensor:
    """½ [tr(Σq⁻¹ Σp) - d - log det(Σq⁻¹ Σp) + Δᵀ Σq⁻¹ Δ]"""
    left, right = low_rank.low_rank(p), low_rank.low_rank(q)
    if left is not None and right is not None and low_rank.pays(left, right):
        _same_size(left.loc, right.loc)
        return low_rank.kl(left, right)
    return mvn(factor(p), factor(q))


@closed_form(MultivariateNormal, quantity="entropy", source="Cover & Thomas 2006, theorem 8.4.1")
@closed_form(LowRankMultivariateNormal, quantity="entropy", source="Cover & Thomas 2006, theorem 8.4.1")
def mvn_entropy(p: MultivariateNormal | LowRankMultivariateNormal) -> Tensor:
    """½ (d log(2πe) + log det Σ)"""
    parts = low_rank.low_rank(p)
    if parts is not None and low_rank.pays(parts):
        return low_rank.entropy(parts)
    loc, tril = factor(p)
    return 0.5 * loc.shape[-1] * LOG_2PI_E + torch.log(tril.diagonal(dim1=-2, dim2=-1)).sum(-1)


@closed_form(Wishart, quantity="entropy", source="Gupta & Srivastava 2010")
def wishart_entropy(p: Wishart) -> Tensor:
    """log Γ_d(n/2) + (d+1)/2 log det V + d(d+1)/2 log 2 - (n-d-1)/2 ψ_d(n/2) + nd/2"""
    (df,) = doubles(p, "df")
    size = p.event_shape[-1]
    log_det = 2.0 * torch.log(scale_tril(p).diagonal(dim1=-2, dim2=-1)).sum(-1)
    arguments = (df.unsqueeze(-1) - torch.arange(size, dtype=df.dtype, device=df.device)) / 2.0
    multi = 0.25 * size * (size - 1) * math.log(math.pi) + torch.lgamma(arguments).sum(-1)
    mean_log = 0.5 * (df - size - 1.0) * torch.digamma(arguments).sum(-1)
    return multi - mean_log + 0.5 * size * df + 0.5 * (size + 1.0) * (log_det + size * math.log(2.0))


def mvn_affinity(
    p: MultivariateNormal | LowRankMultivariateNormal,
    q: MultivariateNormal | LowRankMultivariateNormal,
    order: float,
) -> Tensor:
    """-½ a(1-a) Δᵀ S⁻¹ Δ - ½ log(det S / (det Σp^(1-a) det Σq^a)), S = (1-a) Σp + a Σq; +inf where S is not definite"""
    (m, lp), (n, lq) = factor(p), factor(q)
    _same_size(m, n)
    lp, lq = together(lp, lq)
    ratio = torch.linalg.solve_triangular(lq, lp, upper=False)
    square = ratio @ ratio.mT
    eigenvalues = torch.linalg.eigvalsh(square)
    outside = ((1.0 - order) * eigenvalues + order <= 0.0).any(-1)
    safe = torch.where(outside.unsqueeze(-1), 1.0, eigenvalues)
    eye = torch.eye(m.shape[-1], dtype=m.dtype, device=m.device)
    mixed = torch.where(outside.unsqueeze(-1).unsqueeze(-1), eye, (1.0 - order) * square + order * eye)
    gap = torch.linalg.solve_triangular(lq, (m - n).unsqueeze(-1), upper=False)
    distance = (torch.linalg.solve_triangular(torch.linalg.cholesky(mixed), gap, upper=False) ** 2).sum((-2, -1))
    # in eigenvalues of Σp Σq^-1: log(1-a + a e^y) - a y at y = -log λ
    gaps = jensen_gap(order, -torch.log(safe)).sum(-1)
    return infinite_where(outside, -0.5 * order * (1.0 - order) * distance - 0.5 * gaps)


_VECTORS = (MultivariateNormal, LowRankMultivariateNormal, Independent)
for _p in _VECTORS:
    for _q in _VECTORS:
        if not (_p is Independent and _q is Independent):
            closed_form(_p, _q, source=_SOURCE, applies=_are_normal_vectors)(mvn_mvn)
            closed_form(
                _p, _q, quantity="log_affinity", source="Gil, Alajaji & Linder 2013", applies=_are_normal_vectors
            )(mvn_affinity)


def same_matrices(p: Wishart, q: Wishart) -> None:
    """Raise FormError unless p and q are over matrices of the same shape."""
    if p.event_shape != q.event_shape:
        raise FormError(f"p is over {tuple(p.event_shape)} matrices but q over {tuple(q.event_shape)}.")


def wishart(df_p: Tensor, lp: Tensor, df_q: Tensor, lq: Tensor) -> Tensor:
    """Σ_i [KL of Gamma((np-i)/2) to Gamma((nq-i)/2), scales m_ii² : 1, + (i/2) rise(2 log m_ii)] + (np/2) Σ m_ij²."""
    a, b = together(df_p / 2.0, df_q / 2.0)
    log_square, below = whitened(lp, lq)
    half = torch.arange(lp.shape[-1], dtype=a.dtype, device=a.device) / 2.0
    difference = (b - a).unsqueeze(-1)
    x, y = a.unsqueeze(-1) - half, b.unsqueeze(-1) - half
    x, y, log_square, difference = together(x, y, log_square, difference)
    diagonal = gamma(x, y, log_square + log_ratio(x, y, -difference), difference) + half * rise(log_square)
    return diagonal.sum(-1) + a * below


@closed_form(Wishart, Wishart, source="Bartlett decomposition: Anderson 2003, section 7.2")
def wishart_wishart(p: Wishart, q: Wishart) -> Tensor:
    """Σ_i [KL of Gamma((np-i)/2) to Gamma((nq-i)/2), scales m_ii² : 1, + (i/2) rise(2 log m_ii)] + (np/2) Σ m_ij²"""
    same_matrices(p, q)
    (df_p,), (df_q,) = doubles(p, "df"), doubles(q, "df")
    return wishart(df_p, scale_tril(p), df_q, scale_tril(q))
