import torch.nn.functional as F


def loss(x, y):
    return F.kl_div(F.softmax(x, dim=-1), F.softmax(y, dim=-1), reduction="batchmean")  # expect: KLB003
