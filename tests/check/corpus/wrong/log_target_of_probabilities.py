import torch
import torch.nn.functional as F


def loss(x, y):
    p = torch.softmax(y.detach(), dim=-1)
    return F.kl_div(x.log_softmax(dim=-1), p, log_target=True, reduction="sum")  # expect: KLB004
