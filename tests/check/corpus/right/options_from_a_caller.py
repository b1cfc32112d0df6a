from torch import nn


def make(reduction, **options):
    return nn.KLDivLoss(reduction=reduction), nn.KLDivLoss(**options)
