import torch.nn.functional as F
from torch import nn


class Loss(nn.Module):
    def forward(self, y_s, y_t, target):
        p_s = F.log_softmax(y_s / self.T, dim=1)
        p_t = F.softmax(y_t / self.T, dim=1)
        loss = F.kl_div(p_s, p_t, reduction="sum") * (self.T**2) / y_s.shape[0]
        return loss + F.cross_entropy(y_s, target)
