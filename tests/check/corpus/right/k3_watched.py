import torch


def ppo(logp, old_logp, advantage):
    log_ratio = logp - old_logp
    ratio = log_ratio.exp()
    with torch.no_grad():
        approx_kl = ((ratio - 1) - log_ratio).mean()
    loss = -(ratio * advantage).mean()
    return loss, approx_kl
