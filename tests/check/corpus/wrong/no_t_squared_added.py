import torch
import torch.nn.functional as F


def step(self, s, t, y):
    loss = self.ce(s, y)
    kl = F.kl_div(torch.log_softmax(s.div(self.T), -1), torch.softmax(t.div(self.T), -1), reduction="batchmean")  # expect: KLB007
    loss += self.weight * kl
    return loss
