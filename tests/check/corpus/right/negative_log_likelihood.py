


def nll(x, mu, logvar):
    return 0.5 * (logvar + (x - mu).pow(2) / logvar.exp() + 1.8379)
