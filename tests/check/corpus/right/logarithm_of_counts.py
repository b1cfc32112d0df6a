import torch


def scale(counts, x):
    return torch.log(counts + 1e-6), torch.log(x.clamp(min=1e-8)), x * torch.log1p(x)
