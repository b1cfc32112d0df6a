import torch
from torch.distributions import Normal, kl_divergence


def kld(mu, logvar):
    return kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(-1)
