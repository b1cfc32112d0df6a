import torch
import torch.nn.functional as F


def vae_loss(x, y, mu, logvar):
    kld = -0.5 * torch.mean(1 + logvar - mu.pow(2) - logvar.exp())  # expect: KLB012
    return F.mse_loss(x, y) + kld
