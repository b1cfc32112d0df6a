import torch


def entropy(p):
    safe = torch.where(p > 0, p, 1.0)
    return -(p * torch.log(safe)).sum(-1)
