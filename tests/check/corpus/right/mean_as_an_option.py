import torch.nn.functional as F


def loss(log_q, p, reduction):
    terms = F.kl_div(log_q, p, reduction="none")
    if reduction == "sum":
        return terms.sum()
    elif reduction == "mean":
        return terms.mean()
    return terms.sum(-1)
