import torch


def loss(logp, old, ref):
    ratio = torch.exp(logp - old)
    kl = torch.exp(ref - logp) - (ref - logp) - 1
    kl_loss = (ratio * kl).mean()
    return kl_loss
