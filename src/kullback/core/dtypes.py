"""In what numbers are given out."""

import torch


def result_dtype(*given: torch.dtype) -> torch.dtype:
    """Of values made of these: float64 if one of them is, and float32 otherwise, for half precision too.

    >>> result_dtype(torch.bfloat16, torch.float16)
    torch.float32
    """
    return torch.float64 if torch.float64 in given else torch.float32
