import torch.nn.functional as F


def uda(logits, unlabelled_logits, T):
    target = F.softmax(unlabelled_logits.detach() / T, dim=-1)  # sharpened
    return F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean")
