import torch.nn.functional as F


def loss(log_q, p, mask):
    terms = F.kl_div(log_q, p, reduction="none").sum(-1)
    return (terms * mask).sum() / mask.sum(), terms.mean()
