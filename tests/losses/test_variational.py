import math

import pytest
import torch

from kullback import FormError
from kullback.losses import DiagonalGaussian, ForwardKL, FullGaussian, ReverseKL, gaussian_kl


def test_reverse_kl_is_kl_less_log_z_for_gaussians():
    """E_q[log q - log p̃] with p̃ = Z p: the closed form minus log Z, within 5 standard errors of 200,000 draws."""
    q = DiagonalGaussian(torch.tensor([0.5, -1.0]).double(), torch.tensor([0.2, -0.5]).double())
    p = FullGaussian(torch.zeros(2).double(), torch.tensor([[1.0, 0.0], [0.4, 1.5]]).double())
    ours = ReverseKL(200_000)(q, lambda z: p.log_prob(z) + 7.0, generator=torch.Generator().manual_seed(0))
    assert ours.item() + 7.0 == pytest.approx(gaussian_kl(q, p).item(), abs=0.012)


def test_reverse_kl_equals_the_elbo_written_out():
    mu, logvar = torch.randn(3).double().requires_grad_(), torch.randn(3).double().requires_grad_()

    def log_p(z):
        return -z.abs().sum(-1)

    ours = ReverseKL(5)(DiagonalGaussian(mu, logvar), log_p, generator=torch.Generator().manual_seed(0))
    z = mu + (logvar / 2).exp() * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source = (torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(z).sum(-1) - log_p(z)).mean()
    assert ours.item() == pytest.approx(source.item(), rel=1e-12)
    for x in (mu, logvar):
        (g,), (s,) = (torch.autograd.grad(v, x, retain_graph=True) for v in (ours, source))
        torch.testing.assert_close(g, s, rtol=1e-10, atol=1e-12)


def test_the_path_gradient_vanishes_at_the_optimum_and_the_plain_one_does_not():
    mu, logvar = torch.ones(2).double().requires_grad_(), torch.zeros(2).double().requires_grad_()
    target = DiagonalGaussian(mu.detach(), logvar.detach())
    sizes = []
    for path in (True, False):
        loss = ReverseKL(8, path_gradient=path)(
            DiagonalGaussian(mu, logvar), target.log_prob, generator=torch.Generator().manual_seed(0)
        )
        sizes.append(sum(g.abs().sum().item() for g in torch.autograd.grad(loss, (mu, logvar))))
    assert sizes[0] < 1e-14
    assert sizes[1] > 1e-2


def test_no_gradient_flows_through_a_detached_gaussian():
    """Each parameter by itself, so that one `detach` left out shows."""
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lower = torch.tensor([[1.0, 0.0], [0.4, 1.5]], dtype=torch.float64)
    for family, scale in ((DiagonalGaussian, torch.zeros(2).double()), (FullGaussian, lower)):
        mu, scale = torch.ones(2).double().requires_grad_(), scale.clone().requires_grad_()
        q = family(mu, scale)
        fixed = q.detach()
        assert torch.equal(fixed.log_prob(z), q.log_prob(z))
        for value in (fixed.log_prob(z), fixed.rsample((3,)), gaussian_kl(fixed)):
            assert not value.requires_grad
        # through what is left attached, the gradient to each parameter is not zero
        for x in (mu, scale):
            assert torch.autograd.grad(q.log_prob(z).sum(), x, retain_graph=True)[0].abs().sum() > 0.1


def test_the_path_gradient_vanishes_at_the_optimum_of_a_full_gaussian_too():
    mu = torch.ones(2).double().requires_grad_()
    lower = torch.tensor([[1.0, 0.0], [0.4, 1.5]], dtype=torch.float64, requires_grad=True)
    q = FullGaussian(mu, lower)
    loss = ReverseKL(8, path_gradient=True)(q, q.detach().log_prob, generator=torch.Generator().manual_seed(0))
    assert sum(g.abs().sum().item() for g in torch.autograd.grad(loss, (mu, lower))) < 1e-13


def test_torch_distributions_are_families_too():
    torch.manual_seed(0)
    q = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    assert ReverseKL(3)(q, q.log_prob).item() == 0
    with pytest.raises(FormError, match="no generator"):
        ReverseKL(3)(q, q.log_prob, generator=torch.Generator())
    with pytest.raises(FormError, match="no detach"):
        ReverseKL(3, path_gradient=True)(q, q.log_prob)
    with pytest.raises(FormError, match="reparameterised"):
        ReverseKL(3)(torch.distributions.Bernoulli(0.5), lambda z: z)
    with pytest.raises(FormError, match=r"log_p\(z\) has \(3, 2\)"):
        ReverseKL(3)(q, lambda z: -z)
    with pytest.raises(FormError, match="num_samples is 0"):
        ReverseKL(0)


def test_forward_kl_from_draws_is_maximum_likelihood():
    log_q = torch.randn(10, 4, dtype=torch.float64)
    fit = ForwardKL().parts(log_q=log_q)
    assert fit.loss.item() == pytest.approx(-log_q.mean().item(), rel=1e-12)
    assert fit.effective_sample_size.item() == pytest.approx(10.0, rel=1e-12)
    assert fit.log_z is None


def test_self_normalised_weights_written_out():
    """Bornschein & Bengio 2015, equations 4-6: ω̃ = ω / Σω, gradient -Σ ω̃ ∇ log q, Z estimated by the mean of ω."""
    log_q, log_w = (torch.randn(6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    fit = ForwardKL().parts(log_q=log_q, log_weights=log_w)
    w = log_w.detach().exp()
    normal = w / w.sum(0)
    assert fit.loss.item() == pytest.approx(-(normal * log_q).sum(0).mean().item(), rel=1e-12)
    assert fit.effective_sample_size.item() == pytest.approx((1 / normal.square().sum(0)).mean().item(), rel=1e-12)
    assert fit.log_z.item() == pytest.approx(w.mean(0).log().mean().item(), rel=1e-12)
    (g,) = torch.autograd.grad(fit.loss, log_q)
    torch.testing.assert_close(g, -normal / 3, rtol=1e-12, atol=0)
    assert torch.autograd.grad(ForwardKL()(log_q=log_q, log_weights=log_w), log_w, allow_unused=True) == (None,)


def test_weights_of_any_scale_and_none():
    log_q = torch.tensor([-1.0, -3.0, -math.inf], dtype=torch.float64)
    log_w = torch.tensor([1000.0, 1000.0 + math.log(3), -math.inf], dtype=torch.float64)
    fit = ForwardKL().parts(log_q=log_q, log_weights=log_w)
    assert fit.loss.item() == pytest.approx(2.5)
    assert fit.log_z.item() == pytest.approx(1000 + math.log(4 / 3))
    assert ForwardKL()(log_q=log_q).item() == math.inf  # q excludes a draw of p


def test_importance_weights_find_the_moments_of_a_two_mode_target():
    """Of ½N(-3,1) + ½N(3,1) forward KL from a wide proposal fits mean 0 and variance 10; reverse KL finds a mode."""
    generator = torch.Generator().manual_seed(0)

    def log_p(z):
        both = torch.stack([-((z - 3) ** 2) / 2, -((z + 3) ** 2) / 2])
        return torch.logsumexp(both, 0).sum(-1)

    proposal = DiagonalGaussian(torch.zeros(1), torch.tensor([math.log(25.0)]))
    z = proposal.rsample((4000,), generator=generator)
    log_weights = log_p(z) - proposal.log_prob(z)
    fits = {}
    for name in ("forward", "reverse"):
        mu, logvar = torch.tensor([0.5], requires_grad=True), torch.tensor([0.0], requires_grad=True)
        optimizer = torch.optim.Adam([mu, logvar], lr=0.1)
        for _ in range(150):
            q = DiagonalGaussian(mu, logvar)
            loss = (
                ForwardKL()(log_q=q.log_prob(z), log_weights=log_weights)
                if name == "forward"
                else ReverseKL(64)(q, log_p, generator=generator)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        fits[name] = (mu.item(), logvar.exp().item())
    assert fits["forward"] == (pytest.approx(0.0, abs=0.3), pytest.approx(10.0, rel=0.1))
    assert fits["reverse"] == (pytest.approx(3.0, abs=0.2), pytest.approx(1.0, abs=0.3))


def test_shapes_must_agree():
    with pytest.raises(FormError, match=r"log_q has rows of shape \(3,\) but log_weights has \(4,\)"):
        ForwardKL()(log_q=torch.zeros(3), log_weights=torch.zeros(4))
