"""How a causal language model makes scores of its last hidden state, as its head and its config say."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kullback._errors import FormError
from kullback.forms.finite import FiniteForm, Logits
from kullback.forms.linear import LinearLogits

# what asks a model for its last hidden state, and for the scores of one position, by which the rest is checked
ASKED = {"output_hidden_states": -1, "logits_to_keep": 1}
MULTIPLY = ("logit_scale", "lm_head_multiplier", "output_multiplier")  # Cohere, Falcon-H1, Muse


class Head(NamedTuple):
    """Scores = softcap · tanh(scale · linear(hidden) / softcap)."""

    linear: nn.Linear
    scale: float
    softcap: float | None

    def form(self, hidden: Tensor) -> LinearLogits:
        """The distributions of hidden states. The weight is read now: FSDP2 swaps it around the forward pass."""
        return LinearLogits(hidden, self.linear.weight, self.linear.bias, scale=self.scale, softcap=self.softcap)


def head_of(model: Any) -> Head | str:
    """The head of a `transformers` model, or why it cannot stand for the model's own scores."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(base).__name__
    if "logits_to_keep" not in inspect.signature(base.forward).parameters:
        return f"{name}.forward has no argument logits_to_keep"
    head = base.get_output_embeddings()
    if hasattr(head, "modules_to_save"):  # peft trains a copy of it
        active = head.active_adapters
        head = head.modules_to_save[active[0]] if len(active) == 1 else head
    if head is None:
        return f"{name} has no output embeddings"
    if type(head) is not nn.Linear and not _sharded_linear(head):
        return f"the head of {name} is a {type(head).__name__}, no plain nn.Linear"
    config = base.config.get_text_config()
    scale = 1.0
    for setting in MULTIPLY:
        scale *= _number(config, setting, 1.0)
    scaling = _number(config, "logits_scaling", 1.0)
    # HyperCLOVA X multiplies by what Granite divides by
    scale = scale * scaling if config.model_type.startswith("hyperclovax") else scale / scaling
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(head, scale, None if softcap is None else float(softcap))


def prove(whose: str, head: Head, hidden: Tensor, scores: Tensor) -> bool:
    """Compare the model's own scores of its last position with those that the head makes of the last hidden state.

    Returns False where nothing can be told, since every score is 0. Raises FormError where they differ by more than
    rounding: a thousandth, in half precision the spacing of its numbers at 2.
    """
    with torch.no_grad():
        made = head.form(hidden[:, -1]).logits().data
        own = scores[:, -1]
        if own.shape == made.shape:
            allowed = max(1e-3, 2 * torch.finfo(made.dtype).eps)
            rows = torch.isfinite(hidden[:, -1]).all(-1)  # a model that diverged has not lied about its head
            own, made = own[rows].double(), made[rows].double()
            size, off = float(own.norm()), float((own - made).norm())
            if off <= allowed * size:
                return size > 0.0
    raise FormError(
        f"DistillationTrainer: the {whose}'s own scores are not what its head and its config say (scale "
        f"{head.scale:g}, softcap {head.softcap}): this model makes its scores otherwise. Write fused=False."
    )


def cut(form: FiniteForm, num_classes: int) -> FiniteForm:
    """The first `num_classes` classes of scores; a form of probabilities stays whole, since a part has another sum."""
    if isinstance(form, LinearLogits):
        return form.with_tensors(form.data, *(x[:num_classes] for x in form.tensors[1:]))
    return form.with_tensors(form.data[..., :num_classes]) if isinstance(form, Logits) else form


def _sharded_linear(head: Any) -> bool:
    """A plain nn.Linear that FSDP2 made a unit of its own: served where its weight stays whole after the forward pass,
    as transformers shards a head; where it does not, `LinearLogits` refuses it."""
    return nn.Linear in type(head).__bases__ and hasattr(head, "set_reshard_after_forward")


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)
