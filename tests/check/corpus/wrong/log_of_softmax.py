import torch


def entropy(x):
    p = torch.softmax(x, dim=-1)
    return -(p * torch.log(torch.softmax(x, dim=-1))).sum(-1)  # expect: KLB009
