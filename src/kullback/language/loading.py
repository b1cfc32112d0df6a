"""Causal language models of transformers, from folders on disk: nothing is ever downloaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kullback._errors import BadInput
from kullback.kit.extras import extra

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Loaded:
    """A model that is not trained here (`eval`, no gradients), its tokenizer, and a name to speak of it by."""

    model: Any
    tokenizer: Any
    name: str
    folder: Path


def load(folder: str | Path, *, device: str = "cpu", dtype: str | None = None) -> Loaded:
    """A model with its tokenizer.

    Args:
        folder: as `model.save_pretrained(folder); tokenizer.save_pretrained(folder)` make it.
        device: cpu, cuda, cuda:1, ...
        dtype: float32, bfloat16, ...; None for the dtype of the stored weights.
    Raises: BadInput: no such folder, no model or no tokenizer in it, one that transformers cannot load, a device or a
        dtype that is not there.
    """
    transformers = extra("transformers", of="lm")
    folder = Path(folder)
    tokenizer = load_tokenizer(folder)
    if dtype is not None and dtype not in DTYPES:
        raise BadInput(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    with quiet():
        try:
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                dtype="auto" if dtype is None else DTYPES[dtype],
                output_loading_info=True,
            )
        except Exception as error:  # whatever a broken file makes transformers raise
            raise BadInput(
                f"{folder}: holds no causal language model that transformers can load ({_reason(error)}); write "
                "model.save_pretrained(folder)"
            ) from None
    if missing := sorted(info["missing_keys"]):
        raise BadInput(
            f"{folder}: {len(missing)} weights of the model are not stored in it, {missing[0]} for one, and would be "
            "random; write model.save_pretrained(folder)"
        )
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        raise BadInput(f"device {device!r} cannot be used ({_reason(error)}); write cpu") from None
    return Loaded(model.eval().requires_grad_(False), tokenizer, folder.resolve().name, folder)


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a folder. Raises: BadInput."""
    transformers = extra("transformers", of="lm")
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise BadInput(f"{folder}: {what}; give the folder of a transformers model, nothing is downloaded")
    if not (folder / "config.json").is_file():
        raise BadInput(
            f"{folder}: holds no config.json, so no model of transformers; write model.save_pretrained(folder)"
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise BadInput(f"{folder}: holds no tokenizer; write tokenizer.save_pretrained(folder)")
    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a broken file makes transformers raise
        raise BadInput(
            f"{folder}: its tokenizer cannot be loaded ({_reason(error)}); write tokenizer.save_pretrained(folder)"
        ) from None


def longest(model: Any) -> int | None:
    """How many tokens the model can take, as its config says."""
    config = model.config.get_text_config()
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found else None


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside: the commands have their own."""
    logging = extra("transformers", of="lm").utils.logging
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
