import torch.nn.functional as F


def loss(x, teacher):
    y_logits = teacher(x)
    return F.kl_div(F.log_softmax(x, dim=-1), y_logits, reduction="batchmean")  # expect: KLB004
