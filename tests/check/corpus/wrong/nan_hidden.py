import torch
import torch.nn.functional as F


def loss(log_q, p):
    value = F.kl_div(log_q, p, reduction="batchmean")
    return torch.nan_to_num(value, nan=0.0)  # expect: KLB010
