import torch.nn.functional as F


def loss(logits, target):
    logits = F.log_softmax(logits, dim=-1)
    return F.kl_div(logits, target, reduction="sum")
