import torch


def grpo(logp, ref_logp, advantage, beta, mask):
    kl = torch.exp(ref_logp - logp) - (ref_logp - logp) - 1  # expect: KLB013
    per_token_loss = -advantage * logp
    per_token_loss = per_token_loss + beta * kl
    return (per_token_loss * mask).sum() / mask.sum()
