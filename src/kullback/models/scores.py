"""What is measured of a candidate against the reference at every token.

All sums over the classes are made in one pass over the scores: KL in both directions, Jensen-Shannon, total variation,
the reference's entropy, and the log-probability of either side's likeliest class, from which those of single classes
follow. Beside it only the search for the likeliest classes reads them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kullback import divergences
from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Labels, Logits
from kullback.forms.linear import LinearLogits
from kullback.forms.sparse import TopK
from kullback.terms import Term, rows

LIKELIEST = 10
"""The k of `Scores.overlap`."""
CHOICES = 3
MEMORY = 64 << 20
_LONG, _BLOCK = 8192, 64  # columns of a row in which blocks are worth finding first, and of a block

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """One candidate against the reference, an entry a token, (N,) each; divergences in nats.

    Args:
        document: of which document, by its index.
        position: of the predicted token in its document.
        token: the id that came.
        kl, reverse, js, tv: KL(reference‖candidate), KL(candidate‖reference), Jensen-Shannon, total variation.
        log_p, log_q: the log-probability of the token that came, by the reference and by the candidate.
        top_p, top_q: the likeliest id; of equal ones the lowest.
        confidence: the largest probability of the reference.
        entropy: of the reference.
        overlap: how many of the reference's `LIKELIEST` likeliest are among the candidate's; -1: not known.
        choices_p_ids, choices_q_ids, choices_p, choices_q: the `CHOICES` likeliest ids of each, (N, 3), and their
            probabilities; -1 and NaN where there are fewer.
    """

    document: npt.NDArray[np.int64]
    position: npt.NDArray[np.int32]
    token: npt.NDArray[np.int32]
    kl: Floats
    reverse: Floats
    js: Floats
    tv: Floats
    log_p: Floats
    log_q: Floats
    top_p: npt.NDArray[np.int32]
    top_q: npt.NDArray[np.int32]
    confidence: Floats
    entropy: Floats
    overlap: npt.NDArray[np.int16]
    choices_p_ids: npt.NDArray[np.int32]
    choices_q_ids: npt.NDArray[np.int32]
    choices_p: npt.NDArray[np.float32]
    choices_q: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, rows: Any) -> "Scores":
        """These rows: a slice, a mask or indices."""
        return Scores(*(getattr(self, field.name)[rows] for field in fields(self)))

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Every array by its name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def join(parts: Sequence[Scores]) -> Scores:
    """All rows, in order."""
    return Scores(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Scores)))


def score(
    p: FiniteForm,
    q: FiniteForm,
    tokens: Tensor | npt.NDArray[Any] | Sequence[int],
    *,
    document: int | npt.NDArray[Any] = 0,
    position: int | npt.NDArray[Any] = 0,
    memory: int = MEMORY,
) -> Scores:
    """Everything that is measured at some tokens of a text.

    Args:
        p: the reference's distributions of these tokens, batch shape (N,): `Logits` or `LinearLogits`; or a `TopK` with
            tail="bucket", of which only a part is known. Its kl, reverse, js, tv and entropy are those of its cells
            (the listed classes, and all others as one), each a lower bound of the truth; log_p is NaN where the token
            is not listed, overlap is -1 where fewer than `LIKELIEST` classes are.
        q: the candidate's: `Logits` or `LinearLogits`.
        tokens: (N,), the ids that came.
        document: its index, one for all rows or (N,).
        position: of the first of these tokens in its document, the others following it; or (N,).
        memory: bytes that scores made of hidden states may take, for both sides together. At least one row is made.

    Returns:
        Scores of N rows. Divergences are never negative, and exactly 0 where both sides are the same. A row with NaN or
        +inf among its scores has NaN in `kl` and whatever else it touches: nothing is repaired.
    Gradients: none.
    Raises: FormError: another form, different V, no rows' worth of tokens, ids outside of the classes.

    >>> import torch
    >>> reference, candidate = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    >>> found = score(Logits(reference), Logits(candidate), [2])
    >>> found.kl.round(4), found.log_p.round(4), found.top_p, found.top_q
    (array([1.1504]), array([-1.4076]), array([0], dtype=int32), array([1], dtype=int32))
    """
    token = _checked(p, q, tokens)
    n = len(token)
    with torch.no_grad():
        made = [_measured(p[rows], q[rows], token[rows]) for rows in _parts(n, _rows_of(p, q, memory))]
    at = position if isinstance(position, np.ndarray) else np.arange(position, position + n)
    where = np.broadcast_to(np.asarray(document, np.int64), (n,)).copy()
    columns = (torch.cat(column).cpu().numpy() for column in zip(*made, strict=True))
    return Scores(where, at.astype(np.int32), token.cpu().numpy().astype(np.int32), *columns)


class _Numbers(NamedTuple):
    """What `Scores` has of a few rows, beside where they stand."""

    kl: Tensor
    reverse: Tensor
    js: Tensor
    tv: Tensor
    log_p: Tensor
    log_q: Tensor
    top_p: Tensor
    top_q: Tensor
    confidence: Tensor
    entropy: Tensor
    overlap: Tensor
    choices_p_ids: Tensor
    choices_q_ids: Tensor
    choices_p: Tensor
    choices_q: Tensor


def _measured(p: FiniteForm, q: FiniteForm, token: Tensor) -> _Numbers:
    """Rows whose scores fit in memory: made if they are not there."""
    p, q = (form.logits() if isinstance(form, LinearLogits) else form for form in (p, q))
    assert isinstance(p, Logits | TopK)
    assert isinstance(q, Logits)
    ids_q = likeliest(q.data, LIKELIEST)
    terms = [
        Term(divergences.KL, p, q),
        Term(divergences.KL, q, p),
        Term(divergences.js(0.5), p, q),
        Term(divergences.TV, p, q),
        Term(divergences.CROSS_ENTROPY, p, p),
        Term(divergences.CROSS_ENTROPY, _of(ids_q[:, 0], q), q),
    ]
    if isinstance(p, TopK):
        kl, reverse, js, tv, entropy, least_q = rows(terms).double()
        seen_p = _listed(p, token)
    else:
        ids_p = likeliest(p.data, LIKELIEST)
        terms.append(Term(divergences.CROSS_ENTROPY, _of(ids_p[:, 0], p), p))
        kl, reverse, js, tv, entropy, least_q, least_p = rows(terms).double()
        seen_p = _dense(p, ids_p, least_p, token)
    seen_q = _dense(q, ids_q, least_q, token)
    return _Numbers(
        kl, reverse, js, tv, seen_p.log_prob, seen_q.log_prob, seen_p.ids[:, 0].int(), seen_q.ids[:, 0].int(),
        seen_p.log_probs[:, 0].exp(), entropy, _overlap(seen_p.ids, seen_q.ids),
        *(_filled(seen.ids, -1).int() for seen in (seen_p, seen_q)),
        *(_filled(seen.log_probs.exp(), torch.nan).float() for seen in (seen_p, seen_q)),
    )  # fmt: skip


def _of(top: Tensor, form: FiniteForm) -> Labels:
    return Labels(top, form.num_classes, validate=False)


# ---------------------------------------------------------------- single classes


class _Seen(NamedTuple):
    """What single classes have of a side's mass."""

    log_prob: Tensor
    """Of the token that came, (n,)."""
    ids: Tensor
    """The likeliest, (n, up to `LIKELIEST`), and their log-probabilities."""
    log_probs: Tensor


def _dense(form: Logits, ids: Tensor, least: Tensor, token: Tensor) -> _Seen:
    """least: -log of the probability of the likeliest class, from which the score of any other gives its own."""
    asked = form.data.gather(-1, torch.cat([ids, token[:, None]], -1)).double()
    log_probs = (asked - asked[:, :1]) / form.temperature - least[:, None]
    return _Seen(log_probs[:, -1], ids, log_probs[:, :-1])


def _listed(form: TopK, token: Tensor) -> _Seen:
    ids, order = form.data.long().sort(dim=-1)
    log_probs = form.tensors[1].gather(-1, order)
    found = ids == token[:, None]
    log_prob = torch.where(found, log_probs.double(), -torch.inf).amax(-1)
    likely = largest(log_probs, min(LIKELIEST, ids.shape[-1]))
    return _Seen(
        torch.where(found.any(-1), log_prob, torch.nan), ids.gather(-1, likely), log_probs.gather(-1, likely).double()
    )


def likeliest(x: Tensor, k: int) -> Tensor:
    """Columns of the k largest of every row, (n, k), largest first; of equal ones the lower column.

    >>> import torch
    >>> likeliest(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 3)
    tensor([[1, 2, 3]])
    """
    if not k < x.shape[-1] < _LONG or x.element_size() < 4:  # half-precision rows have ties
        return _by_blocks(x, k)
    values, found = x.topk(k + 1)  # which of equal ones comes first is not said
    found, tied = found[:, :k], (values[:, 1:] == values[:, :-1]).any(-1)
    if tied.any():
        found[tied] = _by_blocks(x[tied], k)
    return found


def _by_blocks(x: Tensor, k: int) -> Tensor:
    """`likeliest`: the k largest lie in the k blocks of columns whose maxima are largest, and these are found first."""
    n, num_columns = x.shape
    k, even = min(k, num_columns), num_columns // _BLOCK
    blocks = x[:, : even * _BLOCK].reshape(n, even, _BLOCK)
    taken = largest(blocks.amax(-1), min(k, even)).sort(dim=-1).values  # ascending columns: ties stay in order
    held = blocks.gather(1, taken[..., None].expand(-1, -1, _BLOCK)).flatten(1)
    columns = (taken[..., None] * _BLOCK + torch.arange(_BLOCK, device=x.device)).flatten(1)
    rest = torch.arange(even * _BLOCK, num_columns, device=x.device).expand(n, -1)
    found = largest(torch.cat([held, x[:, even * _BLOCK :]], -1), k)
    return torch.cat([columns, rest], -1).gather(-1, found)


def largest(x: Tensor, k: int) -> Tensor:
    """As `likeliest`, of short rows."""
    if k == x.shape[-1] or x.dtype == torch.float64:
        return x.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    # a float's bits, made to ascend as the float does, then the column, descending: no two are equal
    bits = (x.float() + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = (bits.long() << 32) | torch.arange(x.shape[-1] - 1, -1, -1, device=x.device)
    return key.topk(k).indices


def _overlap(p_ids: Tensor, q_ids: Tensor) -> Tensor:
    common = (p_ids[:, :, None] == q_ids[:, None, :]).flatten(1).sum(-1, dtype=torch.int16)
    return common if p_ids.shape == q_ids.shape else torch.full_like(common, -1)


def _filled(x: Tensor, value: float) -> Tensor:
    """The first `CHOICES` columns, with `value` for those that are missing."""
    x = x[:, :CHOICES]
    return torch.nn.functional.pad(x, (0, CHOICES - x.shape[-1]), value=value)


# ---------------------------------------------------------------- what is given


def _checked(p: FiniteForm, q: FiniteForm, tokens: Any) -> Tensor:
    for name, form, kinds in (("p", p, (Logits, LinearLogits, TopK)), ("q", q, (Logits, LinearLogits))):
        if not isinstance(form, kinds):
            known = " or ".join(kind.__name__ for kind in kinds)
            raise FormError(f"score: {name} is a {type(form).__name__}; a language model's scores are {known}.")
    if isinstance(p, TopK) and p.tail != "bucket":
        raise FormError(
            f"score: the reference is a TopK with tail={p.tail!r}, which is another distribution than the model's. "
            "Write tail='bucket', whose numbers are lower bounds of the truth."
        )
    if p.num_classes != q.num_classes:
        raise FormError(
            f"score: the reference has V={p.num_classes} but the candidate has V={q.num_classes}. If one vocabulary is "
            "padded, cut both to the tokenizer's: Logits(x[..., :V])."
        )
    if isinstance(tokens, Tensor):
        tokens = tokens.detach()
    token = torch.as_tensor(tokens, device=p.device).long()
    if token.dim() != 1 or not token.shape == p.batch_shape == q.batch_shape:
        raise FormError(
            f"score: there are tokens {tuple(token.shape)} for distributions {tuple(p.batch_shape)} and "
            f"{tuple(q.batch_shape)}; each is (N,), one distribution for each token that came."
        )
    outside = (token < 0) | (token >= p.num_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise FormError(f"score: token {row} has the id {int(token[row])}, but V={p.num_classes}.")
    return token


def _rows_of(p: FiniteForm, q: FiniteForm, memory: int) -> int:
    """How many rows of scores may be made at once."""
    sides = [form for form in (p, q) if isinstance(form, LinearLogits)]
    row = sum(form.num_classes * form.data.element_size() for form in sides)
    return max(1, memory // row) if row else max(1, p.batch_shape.numel())


def _parts(n: int, step: int) -> list[slice]:
    return [slice(k, min(k + step, n)) for k in range(0, max(n, 1), step)]
