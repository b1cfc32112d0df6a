import torch.nn.functional as F


def loss(x, y):
    log_q, log_p = F.log_softmax(x, dim=-1), F.log_softmax(y, dim=-1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
