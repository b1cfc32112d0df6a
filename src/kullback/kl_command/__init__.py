"""`kullback kl P Q`: the divergence between two files, or two distributions written as text."""
