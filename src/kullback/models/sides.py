"""What is compared: models of transformers and callables; each gives distributions over the tokens to come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kullback._errors import BadInput, FormError
from kullback.forms.finite import FiniteForm, Logits
from kullback.forms.linear import LinearLogits
from kullback.language.heads import ASKED, cut, head_of, prove
from kullback.language.loading import Loaded, load, longest

from .measuring import Rows
from .text import Batch

WHOLE = 256 << 20  # bytes of whole scores, where a model's head cannot be read, beyond which pieces go one by one


class Side(Protocol):
    """A model to be compared.

    name: what it is called in results.  about: what it is, in a line.  tokenizer: or None where it has none of its
    own.  longest: tokens that it can take, or None where that is not known.
    """

    name: str
    about: str
    tokenizer: Any
    longest: int | None

    def rows(self, batch: Batch, num_classes: int | None = None) -> Rows:
        """The distributions of a batch's scored tokens, over the first `num_classes` classes, or all."""
        ...


class ModelSide:
    """A causal language model of transformers. Scores go through its head a chunk at a time, if its head can be read
    and is proven to make them; otherwise those of a piece are whole.
    """

    def __init__(self, model: Any, name: str, tokenizer: Any = None, folder: Path | None = None) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise BadInput(f"{name}: has an encoder and a decoder; only causal language models can be compared")
        self.model, self.name, self.tokenizer = model.eval(), name, tokenizer
        self.longest, self.folder = longest(model), folder
        parameters = sum(p.numel() for p in model.parameters())
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
        self.about = f"{type(model).__name__}, {parameters:,} parameters, {', '.join(kinds)}"
        found = head_of(model)
        self.head = None if isinstance(found, str) else found
        self._proven = False

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.model.parameters()).device
        return found

    @torch.no_grad()
    def rows(self, batch: Batch, num_classes: int | None = None) -> Rows:
        form: FiniteForm | None = self._through_head(batch) if self.head is not None else None
        if form is None:
            form = Logits(self._whole(batch))
        return Rows(form if num_classes is None else cut(form, num_classes))

    def _through_head(self, batch: Batch) -> LinearLogits | None:
        ids, mask = (x.to(self.device) for x in batch.inputs())
        outputs = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **ASKED)
        hidden = outputs.hidden_states[-1]
        assert self.head is not None
        if not self._proven:
            try:
                self._proven = prove(self.name, self.head, hidden, outputs.logits)
            except FormError:  # this model makes its scores otherwise
                self.head = None
                return None
        which, where = (x.to(self.device) for x in batch.places())
        return self.head.form(hidden[which, where])

    def _whole(self, batch: Batch) -> Tensor:
        ids, _ = batch.inputs()
        size = ids.numel() * self.model.config.get_text_config().vocab_size * 4
        parts = [Batch(batch.start, (piece,)) for piece in batch.pieces] if size > WHOLE else [batch]
        found = []
        for part in parts:
            ids, mask = (x.to(self.device) for x in part.inputs())
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            which, where = (x.to(self.device) for x in part.places())
            found.append(logits[which, where])
        return torch.cat(found)


class CallableSide:
    """A function from token ids (1, length) to logits (1, length, V) or a form of them; called a piece at a time."""

    longest: int | None = None

    def __init__(self, function: Callable[[Tensor], Any], name: str) -> None:
        self.function, self.name, self.tokenizer = function, name, None
        self.about = f"a callable, {getattr(function, '__qualname__', type(function).__name__)}"

    @torch.no_grad()
    def rows(self, batch: Batch, num_classes: int | None = None) -> Rows:
        parts = [self._piece(Batch(batch.start, (piece,))) for piece in batch.pieces]
        if isinstance(parts[0], LinearLogits):
            form: FiniteForm = parts[0].with_tensors(torch.cat([x.data for x in parts]), *parts[0].tensors[1:])
        else:
            form = Logits(torch.cat([x.data for x in parts]))
        return Rows(form if num_classes is None else cut(form, num_classes))

    def _piece(self, one: Batch) -> Logits | LinearLogits:
        ids, _ = one.inputs()
        found = self.function(ids)
        form = Logits(found) if isinstance(found, Tensor) else found
        if not isinstance(form, Logits | LinearLogits):
            raise BadInput(
                f"{self.name}: returned a {type(found).__name__}, but logits (1, length, V), Logits or LinearLogits "
                "are needed: return output.logits"
            )
        if tuple(form.batch_shape) not in (ids.shape, ids.shape[1:]):
            raise BadInput(
                f"{self.name}: returned logits of batch shape {tuple(form.batch_shape)} for ids of shape "
                f"{tuple(ids.shape)}; one row a token is needed"
            )
        data = form.data.reshape(-1, form.data.shape[-1])
        rows = data[one.places()[1].to(data.device)]
        return form.with_tensors(rows, *form.tensors[1:])


def open_side(given: Any, name: str | None = None, *, device: str = "cpu", dtype: str | None = None) -> Side:
    """A folder's model, a model in memory, or a callable. Raises: BadInput."""
    if isinstance(given, str | Path):
        loaded: Loaded = load(given, device=device, dtype=dtype)
        return ModelSide(loaded.model, name or loaded.name, loaded.tokenizer, loaded.folder)
    if hasattr(given, "get_output_embeddings") and hasattr(given, "config"):
        return ModelSide(given, name or Path(given.config._name_or_path or type(given).__name__).name)
    if callable(given):
        return CallableSide(given, name or str(getattr(given, "__name__", "callable")))
    raise BadInput(
        f"a {type(given).__name__} is given, but the folder of a model, a stored reference, a transformers model or a "
        "callable is needed"
    )
