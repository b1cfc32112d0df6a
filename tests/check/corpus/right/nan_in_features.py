import torch
import torch.nn.functional as F


def clean(x):
    features = torch.nan_to_num(x)
    return F.cross_entropy(features, x.argmax(-1))
