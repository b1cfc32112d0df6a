import torch.nn.functional as F


def consistency(x, y, weight):
    terms = F.kl_div(F.log_softmax(x, dim=1), F.softmax(y, dim=1), reduction="none")
    return weight * terms.mean()  # expect: KLB001
