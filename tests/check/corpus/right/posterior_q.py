import torch.nn.functional as F


def elbo(posterior_logits, prior_logits):
    q = F.softmax(posterior_logits, dim=-1)
    p = F.softmax(prior_logits, dim=-1).log_softmax(-1)
    return F.kl_div(p, q, reduction="batchmean")
