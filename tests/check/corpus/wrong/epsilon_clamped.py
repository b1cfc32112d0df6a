import torch.nn.functional as F


def loss(x, target):
    probs = F.softmax(x, dim=-1).clamp(min=1e-7)
    return F.kl_div(probs.log(), target, reduction="batchmean")  # expect: KLB008
