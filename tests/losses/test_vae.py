import math

import mpmath
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from kullback import FormError
from kullback.losses import (
    DiagonalGaussian,
    FullGaussian,
    VAELoss,
    cyclical,
    gaussian_kl,
    gaussian_kl_per_dimension,
    reconstruction_nll,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    decoded, mu, logvar = (
        torch.randn(4, k, generator=generator, dtype=torch.float64).requires_grad_() for k in (6, 3, 3)
    )
    return decoded, torch.rand(4, 6, generator=generator, dtype=torch.float64), mu, logvar


def factors(*batch_shape, d=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn(*batch_shape, d, d, generator=generator, dtype=torch.float64).tril(-1)
    return lower + torch.diag_embed(torch.exp(0.3 * torch.randn(*batch_shape, d, generator=generator).double()))


def test_bernoulli_equals_kingma_and_welling(batch):
    """Their equation 10 and appendix B: -½ Σ (1 + log σ² - μ² - σ²), and the Bernoulli log-likelihood."""
    decoded, target, mu, logvar = batch
    kld = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum() / 4
    bce = F.binary_cross_entropy_with_logits(decoded, target, reduction="sum") / 4
    parts = VAELoss(beta=3.0).parts(decoded=decoded, target=target, posterior=DiagonalGaussian(mu, logvar))
    assert parts.loss.item() == pytest.approx((bce + 3.0 * kld).item(), rel=1e-12)
    assert (parts.reconstruction.item(), parts.kl.item()) == pytest.approx((bce.item(), kld.item()), rel=1e-12)
    for x in (decoded, mu, logvar):
        (g,), (s,) = (torch.autograd.grad(v, x, retain_graph=True) for v in (parts.loss, bce + 3.0 * kld))
        torch.testing.assert_close(g, s, rtol=1e-11, atol=1e-15)


def test_gaussian_likelihood_is_a_log_density(batch):
    decoded, target, mu, logvar = batch
    ours = VAELoss("gaussian", scale=0.3, beta=0.0)(
        decoded=decoded, target=target, posterior=DiagonalGaussian(mu, logvar)
    )
    source = -Normal(decoded, 0.3).log_prob(target).sum(1).mean()
    assert ours.item() == pytest.approx(source.item(), rel=1e-12)


def test_diagonal_and_full_against_torch_distributions():
    mu, logvar, m, lv = (torch.randn(5, 3, dtype=torch.float64) for _ in range(4))
    q, p = DiagonalGaussian(mu, logvar), DiagonalGaussian(m, lv)
    reference = kl_divergence(Independent(Normal(mu, (logvar / 2).exp()), 1), Independent(Normal(m, (lv / 2).exp()), 1))
    torch.testing.assert_close(gaussian_kl(q, p), reference, rtol=1e-12, atol=0)
    torch.testing.assert_close(gaussian_kl(q.full(), p.full()), reference, rtol=1e-11, atol=0)
    left, right = factors(5, seed=1), factors(seed=2)
    full = kl_divergence(MultivariateNormal(mu, scale_tril=left), MultivariateNormal(m[0], scale_tril=right))
    torch.testing.assert_close(gaussian_kl(FullGaussian(mu, left), FullGaussian(m[0], right)), full, rtol=1e-12, atol=0)
    standard = kl_divergence(
        MultivariateNormal(mu, scale_tril=left), MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    )
    torch.testing.assert_close(gaussian_kl(FullGaussian(mu, left)), standard, rtol=1e-12, atol=0)
    mixed = kl_divergence(
        MultivariateNormal(mu, scale_tril=torch.diag_embed((logvar / 2).exp())),
        MultivariateNormal(m, scale_tril=right.expand(5, 3, 3)),
    )
    torch.testing.assert_close(gaussian_kl(q, FullGaussian(m, right)), mixed, rtol=1e-12, atol=0)


@pytest.mark.parametrize("exponent", range(-9, 3))
def test_small_values_keep_their_digits_in_float32(exponent):
    """Against 50 digits, where the plain formula in float32 has none left below 1e-7."""
    logvar = torch.tensor([2.0 * 10.0 ** (exponent / 2)]).float()
    mu = logvar / 3
    with mpmath.workdps(50):
        y, m = mpmath.mpf(logvar.item()), mpmath.mpf(mu.item())
        truth = float((m**2 + mpmath.e**y - 1 - y) / 2)
    ours = gaussian_kl(DiagonalGaussian(mu, logvar))
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(truth, rel=2e-7)


def test_nearly_equal_full_gaussians_keep_their_digits():
    left = factors(d=4, seed=3)
    right = left * (1 + 1e-7)
    # with L = M/(1+h): A = I/(1+h), KL = D/2 (1/(1+h)² - 1 + 2 log(1+h))
    h = ((right / torch.where(left == 0, 1.0, left))[0, 0] - 1).item()
    with mpmath.workdps(50):
        truth = float(2 * ((1 + mpmath.mpf(h)) ** -2 - 1 + 2 * mpmath.log1p(mpmath.mpf(h))))
    ours = gaussian_kl(FullGaussian(torch.zeros(4).double(), left), FullGaussian(torch.zeros(4).double(), right))
    assert ours.item() == pytest.approx(truth, rel=1e-6)
    assert gaussian_kl(FullGaussian(torch.ones(4), left), FullGaussian(torch.ones(4), left)).item() == 0


def test_never_negative_and_zero_only_when_equal():
    mu, logvar = 1e-4 * torch.randn(2, 1000, 5, generator=torch.Generator().manual_seed(0))
    values = gaussian_kl_per_dimension(DiagonalGaussian(mu, logvar))
    assert (values > 0).all()
    naive = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    assert ((naive - values).abs() > 0.9 * values).any()  # most are 0 there
    q = DiagonalGaussian(mu, logvar)
    assert (gaussian_kl(q, q) == 0).all()


def test_published_value():
    covariance = torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    q = DiagonalGaussian(torch.zeros(2).double(), torch.zeros(2).double())
    assert gaussian_kl(q, FullGaussian(torch.zeros(2).double(), torch.linalg.cholesky(covariance))).item() == (
        pytest.approx(0.5, rel=1e-14)
    )


def test_a_prior_without_a_closed_form(batch):
    decoded, target, mu, logvar = batch
    q = DiagonalGaussian(mu, logvar)
    z = q.rsample(generator=torch.Generator().manual_seed(0))
    other = torch.distributions.Laplace(torch.zeros(3).double(), 1.0)
    estimate = q.log_prob(z) - other.log_prob(z).sum(-1)
    ours = VAELoss()(decoded=decoded, target=target, kl=estimate)
    source = F.binary_cross_entropy_with_logits(decoded, target, reduction="sum") / 4 + estimate.mean()
    assert ours.item() == pytest.approx(source.item(), rel=1e-12)


def test_log_prob_and_draws_against_torch_distributions():
    mu, logvar, lower = torch.randn(3).double(), torch.randn(3).double(), factors(seed=5)
    z = torch.randn(7, 3, dtype=torch.float64)
    diagonal, full = DiagonalGaussian(mu, logvar), FullGaussian(mu, lower)
    reference = Normal(mu, (logvar / 2).exp()).log_prob(z).sum(-1)
    torch.testing.assert_close(diagonal.log_prob(z), reference, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        full.log_prob(z), MultivariateNormal(mu, scale_tril=lower).log_prob(z), rtol=1e-12, atol=1e-12
    )
    draws = full.rsample((50_000,), generator=torch.Generator().manual_seed(0))
    covariance = (draws - mu).T @ (draws - mu) / 50_000
    torch.testing.assert_close(covariance, lower @ lower.T, rtol=0.05, atol=0.05)  # 4 standard errors
    again = full.rsample((50_000,), generator=torch.Generator().manual_seed(0))
    assert (draws == again).all()


def test_free_bits(batch):
    decoded, target, _, _ = batch
    mu = torch.tensor([[2.0, 0.01, 0.5], [1.0, 0.02, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.1]]).double()
    mu.requires_grad_()
    q = DiagonalGaussian(mu, torch.zeros(4, 3).double())
    per_dimension = mu.square() / 2
    for over, expected in (
        ("batch", per_dimension.mean(0).clamp(min=0.2).sum()),  # Kingma et al. 2016, equation 15
        ("example", per_dimension.clamp(min=0.2).sum(1).mean()),
    ):
        loss = VAELoss(free_bits=0.2, free_bits_over=over)
        parts = loss.parts(decoded=decoded, target=target, posterior=q)
        assert parts.penalised_kl.item() == pytest.approx(expected.item(), rel=1e-12)
        assert parts.kl.item() == pytest.approx(per_dimension.sum(1).mean().item(), rel=1e-12)
        (g,), (s,) = (torch.autograd.grad(v, mu, retain_graph=True) for v in (parts.penalised_kl, expected))
        torch.testing.assert_close(g, s, rtol=1e-12, atol=1e-15)
    with pytest.raises(FormError, match="free bits over the batch"):
        VAELoss(free_bits=0.2)(decoded=decoded, target=target, posterior=q, num_items=8)


def test_beta_may_be_annealed_by_the_call(batch):
    decoded, target, mu, logvar = batch
    q, loss = DiagonalGaussian(mu, logvar), VAELoss(beta=9.0)
    beta = cyclical(1, steps=8, cycles=2)
    parts = loss.parts(decoded=decoded, target=target, posterior=q, beta=beta)
    assert parts.loss.item() == pytest.approx((parts.reconstruction + 0.5 * parts.kl).item(), rel=1e-14)


def test_gradients_of_the_closed_forms():
    mu, logvar, m, lv = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(4))
    lower = factors(2, seed=7).requires_grad_()
    zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *x: gaussian_kl(DiagonalGaussian(*x[:2]), DiagonalGaussian(*x[2:])), (mu, logvar, m, lv)
    )
    assert torch.autograd.gradcheck(lambda a, b: gaussian_kl(DiagonalGaussian(a, b)), (zero, zero))
    assert torch.autograd.gradgradcheck(lambda a, b: gaussian_kl(DiagonalGaussian(a, b)), (mu, logvar))
    base = factors(seed=8)

    def full(a, below):
        factor = below.tril(-1) + torch.diag_embed(below.diagonal(dim1=-2, dim2=-1))
        return gaussian_kl(FullGaussian(a, factor), FullGaussian(zero[0].detach(), base))

    assert torch.autograd.gradcheck(full, (mu, lower))


def test_a_posterior_without_variance_is_infinitely_far():
    mu, logvar = torch.zeros(1, 2), torch.tensor([[-math.inf, 0.0]])
    assert gaussian_kl(DiagonalGaussian(mu, logvar)).item() == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VAELoss("poisson"), "likelihood is 'poisson'"),
        (lambda: VAELoss(beta=-1.0), "beta is -1.0"),
        (lambda: VAELoss(scale=0.0), "scale is 0.0"),
        (lambda: VAELoss()(decoded=torch.zeros(1, 2), target=torch.zeros(1, 2)), "posterior="),
        (lambda: reconstruction_nll(torch.zeros(1, 2), torch.zeros(1, 3)), "nothing is broadcast"),
        (lambda: reconstruction_nll(torch.zeros(1, 2), torch.full((1, 2), 255.0)), r"outside \[0, 1\]"),
        (lambda: DiagonalGaussian(torch.zeros(2), torch.zeros(3)), "chunk"),
        (lambda: DiagonalGaussian(torch.zeros(2), torch.zeros(2, dtype=torch.long)), "floating"),
        (lambda: FullGaussian(torch.zeros(2), -torch.eye(2)), "positive diagonal"),
        (lambda: FullGaussian(torch.zeros(2), torch.eye(3)), r"\(\.\.\., D, D\)"),
        (
            lambda: gaussian_kl(
                DiagonalGaussian(torch.zeros(2), torch.zeros(2)), DiagonalGaussian(torch.zeros(3), torch.zeros(3))
            ),
            "D=2 but p has D=3",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(FormError, match=message):
        call()


@pytest.mark.parametrize(
    "make",
    [
        lambda mu, x: DiagonalGaussian(mu, x.diagonal()),
        lambda mu, x: FullGaussian(mu, x.tril(-1) + torch.diag_embed(x.diagonal().exp())),
    ],
)
def test_what_is_detached_sends_back_no_gradient(make):
    mu, x = torch.randn(3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    q = make(mu, x)
    cut = q.detach()
    assert type(cut) is type(q)
    z = torch.randn(4, 3, requires_grad=True)
    assert torch.equal(cut.log_prob(z), q.log_prob(z))
    for parts in (vars(cut).values(), [cut.rsample()]):
        assert not any(part.requires_grad for part in parts if isinstance(part, torch.Tensor))
    (to_z,) = torch.autograd.grad(cut.log_prob(z).sum(), z)
    (want,) = torch.autograd.grad(q.log_prob(z).sum(), z)
    assert torch.equal(to_z, want)


@pytest.mark.parametrize("shape", [(), (5,)])
def test_draws_are_the_mean_and_the_deviation_times_the_noise(shape):
    mu, logvar = torch.randn(4, 3), torch.randn(4, 3)
    noise = torch.randn((*shape, 4, 3), generator=torch.Generator().manual_seed(7))
    drawn = DiagonalGaussian(mu, logvar).rsample(shape, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(drawn, mu + torch.sqrt(logvar.exp()) * noise)
    factor = torch.randn(4, 3, 3).tril(-1) + torch.eye(3)
    drawn = FullGaussian(mu, factor).rsample(shape, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(drawn, mu + (factor * noise.unsqueeze(-2)).sum(-1))


def test_a_prior_of_other_rows_or_another_width_is_told_apart():
    q = DiagonalGaussian(torch.zeros(4, 3), torch.zeros(4, 3))
    with pytest.raises(FormError, match="q has D=3 but p has D=2"):
        gaussian_kl(q, DiagonalGaussian(torch.zeros(4, 2), torch.zeros(4, 2)))
    with pytest.raises(FormError, match=r"q has mu of shape \(4, 3\) but p has \(5, 3\)"):
        gaussian_kl(q, DiagonalGaussian(torch.zeros(5, 3), torch.zeros(5, 3)))


@pytest.mark.parametrize("full", [False, True])
def test_one_latent_coordinate(full):
    """KL(N(m, v)‖N(0, 1)) = ½ (m² + v - 1 - log v), of a posterior (batch, 1)."""
    mu, logvar = torch.tensor([[0.5], [-1.0]], dtype=torch.float64), torch.tensor([[0.2], [-0.3]], dtype=torch.float64)
    posterior = DiagonalGaussian(mu, logvar)
    if full:
        posterior = FullGaussian(mu, (0.5 * logvar).exp().unsqueeze(-1))
    decoded = torch.zeros(2, 4, dtype=torch.float64)
    found = VAELoss().parts(decoded=decoded, target=torch.full_like(decoded, 0.5), posterior=posterior)
    by_hand = 0.5 * (mu**2 + logvar.exp() - 1.0 - logvar).sum() / 2
    assert found.kl.item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert found.reconstruction.item() == pytest.approx(4 * math.log(2.0), rel=1e-12)
