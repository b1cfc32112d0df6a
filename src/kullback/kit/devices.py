"""Where PyTorch computes."""

import torch

from kullback._errors import BadInput


def check_device(name: str) -> None:
    """Refuse a device that PyTorch cannot use here."""
    try:
        torch.zeros(1, device=torch.device(name))
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise BadInput(f"--device {name!r} cannot be used ({reason}); write --device cpu") from None
