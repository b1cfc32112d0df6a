"""False alarms and crashes met in published code, and what must still be found beside them."""

import textwrap

import pytest

from kullback.check import check_source

HEAD = "import numpy as np, torch, torch.nn.functional as F\nfrom torch import nn\n"


def codes(body: str) -> list[str]:
    return [one.code for one in check_source(HEAD + textwrap.dedent(body))]


RIGHT = {
    "a target that was a copy of log-probabilities, and is filled in place": """
        def loss(log_probabilities, targets):
            smooth = log_probabilities.clone()
            smooth.fill_(0.1)
            smooth.scatter_(1, targets, 0.9)
            return F.kl_div(log_probabilities, smooth, reduction="sum")
    """,
    "a log-ratio called kl, whose NaN mark missing tokens": """
        def mask(old_logps, logps):
            kl_div = old_logps - logps.detach()
            return torch.nan_to_num(kl_div)
    """,
    "the binomial coefficient by Stirling's formula": """
        def log_binom(n, k, eps=1e-7):
            return n * torch.log(n) - (n - k) * torch.log(n - k + eps)
    """,
    "a binomial likelihood": """
        def binomial(self, probabilities, k, eps):
            probabilities = probabilities.clamp(min=eps)
            return k * torch.log(probabilities)
    """,
    "the limit put in by where": """
        def loss(mixture_probs, log_p, support):
            log_m = torch.where(support, torch.log(mixture_probs.clamp_min(1e-30)), torch.zeros_like(log_p))
            return F.kl_div(log_m, log_p, reduction="none", log_target=True).sum(-1)
    """,
    "an empty index": "x = torch.zeros(())[()]\ny = x.log()",
    "an operator of PyTorch's, with its own options": "def f(x, y, r): return torch.kl_div(x, y, r, log_target=True)",
    "a gumbel softmax": "def f(x): return torch.log(F.gumbel_softmax(x))",
    "a keyword that is starred": "def f(a, b, **k): return F.kl_div(a, b, **k)",
    "a loop that changes what a name holds": """
        def f(x, y):
            q = F.softmax(x, -1)
            for _ in range(3):
                F.kl_div(q, y, reduction="sum")
                q = F.log_softmax(x, -1)
    """,
    "branches that disagree": """
        def f(x, y, flag):
            if flag:
                q = F.softmax(x, -1)
            else:
                q = F.log_softmax(x, -1)
            return F.kl_div(q, y, reduction="sum")
    """,
    "a k3 through which no gradient flows": """
        def f(logp, ref, loss):
            with torch.no_grad():
                kl = torch.exp(ref - logp) - (ref - logp) - 1
            loss = loss + kl.mean()
            other_loss = (torch.exp(ref - logp) - (ref - logp) - 1).detach() + loss
            return loss
    """,
    "a function that gets the name": """
        q = F.softmax(x, -1)
        def f(q, y):
            return F.kl_div(q, y, reduction="sum")
    """,
    "match, try and with": """
        def f(x, y, how):
            match how:
                case "a":
                    x = F.log_softmax(x, -1)
            try:
                x = g(x)
            except ValueError:
                pass
            with open("f") as x:
                return F.kl_div(x, y, reduction="sum")
    """,
}
WRONG = {
    "both sides of an if agree": ("""
        def f(x, y, flag):
            if flag:
                q = F.softmax(x, -1)
            else:
                q = F.softmax(x * 2, -1)
            return F.kl_div(q, y, reduction="sum")
    """, ["KLB003"]),
    "a branch that returns": ("""
        def f(x, y, flag):
            q = F.softmax(x, -1)
            if flag:
                q = None
                return q
            return F.kl_div(q, y, reduction="sum")
    """, ["KLB003"]),
    "a module that the class keeps": ("""
        class A(nn.Module):
            def __init__(self):
                self.kl = nn.KLDivLoss(reduction="batchmean", log_target=True)
            def forward(self, x, y):
                return self.kl(F.log_softmax(x, 1), F.softmax(y, 1))
    """, ["KLB004"]),
    "a module that is called at once": ("def f(x, y): return nn.KLDivLoss()(x, y)", ["KLB001"]),
    "a mixture of probabilities": ("""
        def f(x, y):
            m = 0.5 * (x.softmax(-1) + y.softmax(-1))
            return F.kl_div(m, x.softmax(-1), reduction="sum")
    """, ["KLB003"]),
    "a slice of a softmax": ("""
        def f(x, y):
            q = x.softmax(-1)[:, :-1]
            return F.kl_div(q, y, reduction="sum")
    """, ["KLB003"]),
    "axes by slices": ("""
        def f(x, y):
            x = x[:, :-1, :].log_softmax(-1)
            return F.kl_div(x, y, reduction="batchmean")
    """, ["KLB002"]),
    "axes by einops": ("""
        from einops import rearrange
        def f(x, y):
            x = rearrange(x, "(b t) v -> b t v", t=4)
            return F.kl_div(x.log_softmax(-1), y, reduction="batchmean")
    """, ["KLB002"]),
    "axes by an annotation": ("""
        def f(x: Float[Tensor, "batch time classes"], y):
            return F.kl_div(x.log_softmax(-1), y, reduction="batchmean")
    """, ["KLB002"]),
    "k3 by its parts": ("""
        def f(logp, ref, beta, pg_loss):
            r = ref - logp
            ratio = r.exp()
            kl = (ratio - 1) - r
            loss = pg_loss + beta * kl.mean()
            loss.backward()
    """, ["KLB013"]),
    "sigma instead of its logarithm": (
        "def kld(mu, sigma): return 0.5 * (mu**2 + sigma**2 - torch.log(sigma**2) - 1).sum(-1)", ["KLB012"]
    ),
    "twice log sigma": (
        "def kld(mu, ls): return -0.5 * (1 + 2 * ls - mu * mu - torch.exp(2 * ls)).sum(-1)", ["KLB012"]
    ),
    "numpy, and a dot product": (
        "def kl_divergence(P, Q): return np.dot(P, np.log(np.maximum(P, 1e-12) / Q))", ["KLB008"]
    ),
    "a conditional expression": (
        "def f(x, y, a): return F.kl_div(x.softmax(0) if a else x.softmax(1), y, reduction='sum')", ["KLB003"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_left_alone(name):
    assert codes(RIGHT[name]) == []


@pytest.mark.parametrize("name", WRONG)
def test_found(name):
    body, expected = WRONG[name]
    assert codes(body) == expected


def test_the_mean_over_latent_axes_is_said():
    (one,) = check_source(HEAD + "kld = -0.5 * torch.mean(1 + lv - mu ** 2 - lv.exp())\n")
    assert "divides by the latent axes" in one.message
    (other,) = check_source(HEAD + "kld = -0.5 * torch.sum(1 + lv - mu ** 2 - lv.exp(), -1)\n")
    assert "latent axes" not in other.message
