import torch
import torch.nn.functional as F


def loss(x, target, is_log):
    if is_log:
        x = F.log_softmax(x, dim=-1)
    else:
        x = torch.logsumexp(x, 0)
    return F.kl_div(x, target, reduction="batchmean")
