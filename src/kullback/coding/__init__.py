"""What KL costs in bits: data encoded with a model's code, decoded again, and the bill compared with n·KL.

| file | holds |
| --- | --- |
| `models` | what a code is made for: fixed probabilities, or counts that learn (Krichevsky-Trofimov) |
| `coder` | range and ANS coder, by constriction |
| `bill` | the same data under two models, and what theory says |
| `sources`, `command` | texts and numbers from the command line; the sub-command `kullback code` |
"""

from .bill import Bill, Cost, bill
from .coder import Coded, decode, encode
from .models import Adaptive, Fixed, frequencies

__all__ = ["Adaptive", "Bill", "Coded", "Cost", "Fixed", "bill", "decode", "encode", "frequencies"]
