import torch

criterion = torch.nn.KLDivLoss(reduce=False)  # expect: KLB011
