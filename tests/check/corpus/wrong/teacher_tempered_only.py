import torch.nn.functional as F


class Trainer:
    def step(self, s, t):
        t = t / self.temperature
        return F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean")  # expect: KLB006
