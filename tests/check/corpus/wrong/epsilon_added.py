import torch


def kl(p, q):
    return (p * (torch.log(p + 1e-10) - torch.log(q + 1e-10))).sum(-1)  # expect: KLB008
