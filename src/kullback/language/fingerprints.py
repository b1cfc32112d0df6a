"""What a tokenizer and a model are, as hashes that are the same in every process and on every machine.

A tokenizer's hash is of what decides which ids a text gets: normaliser, splitting, model (vocabulary, merges, scores),
what is put around a text, added tokens, and which of them begin and end a text. It leaves out the padding token, chat
template, maximal length and decoder, none of which changes an id.

A model's hash is of its weights and its config. Of the weights it is SHA-256 over the lines "name dtype shape digest",
sorted by name, where digest is SHA-256 of the tensor's little-endian bytes: how a folder is cut into files does not
count. Every byte is read once, at the speed of the disk or about 1 GB/s a thread.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kullback._errors import BadInput, FormError
from kullback.kit.extras import extra

from .vocabulary import SAMPLE

_THREADS = 4  # hashing leaves Python's lock
_BLOCK = 1 << 24  # bytes of a file at once
# of a config: who wrote it and how it is to be run, which the weights' own dtype says too
_INCIDENTAL = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Fingerprint(NamedTuple):
    """A model by name, for people, and by hash."""

    name: str
    hash: str


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256, in hex, of what decides which ids a text gets.

    Args: tokenizer: of `transformers`, or a processor that holds one, or a `tokenizers.Tokenizer`.
    Raises: FormError: it is none.

    A tokenizer of Rust is hashed by what it is made of. One of Python is hashed by its class, its vocabulary and added
    tokens, its SentencePiece model if it has one, and the ids that it gives to a sample text.

    >>> from tokenizers import Tokenizer, models
    >>> one, other = (Tokenizer(models.WordLevel({"a": i, "b": 1 - i}, "a")) for i in range(2))
    >>> tokenizer_hash(one) == tokenizer_hash(one), tokenizer_hash(one) == tokenizer_hash(other)
    (True, False)
    """
    plain = getattr(tokenizer, "tokenizer", tokenizer)
    if not hasattr(plain, "get_vocab"):
        raise FormError(f"tokenizer_hash: a {type(tokenizer).__name__} is given, but a tokenizer is needed.")
    rust = plain if hasattr(plain, "to_str") else getattr(plain, "backend_tokenizer", None)
    made = _of_python(plain) if rust is None else _of_rust(rust)
    made["roles"] = {role: _text(getattr(plain, role, None)) for role in _ROLES}
    made["splits special tokens"] = bool(getattr(plain, "split_special_tokens", False))
    return _digest(json.dumps(made, sort_keys=True, ensure_ascii=True).encode())


def model_fingerprint(model: str | Path | nn.Module) -> Fingerprint:
    """Name and hash of a model: of a folder as `save_pretrained` writes it, or of one in memory.

    A model in memory, of one dtype, has the hash of the folder that it is saved to, except where `transformers` renames
    its tensors when it writes them. Tensors that are tied to others count once.

    Raises: BadInput: no folder, or no weights in it. FormError: weights in memory that are not there (meta, offloaded)
        or no plain tensors.
    """
    if isinstance(model, nn.Module):
        return Fingerprint(_name_of(model), _combined(_config_of(model), _lines_of(model)))
    folder = Path(model)
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; name one that save_pretrained wrote")
    return Fingerprint(folder.resolve().name, _combined(_config_in(folder), _lines_in(folder)))


def file_hash(path: Path) -> str:
    """SHA-256, in hex, of a file.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "empty")
    >>> path.write_bytes(b"")
    0
    >>> file_hash(path)[:8]
    'e3b0c442'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- tokenizers


def _of_rust(tokenizer: Any) -> dict[str, Any]:
    made = json.loads(tokenizer.to_str())
    parts = ("normalizer", "pre_tokenizer", "model", "post_processor", "added_tokens")
    return {part: made.get(part) for part in parts}


def _of_python(tokenizer: Any) -> dict[str, Any]:
    model: Any = getattr(tokenizer, "sp_model", None)
    proto = model.serialized_model_proto() if hasattr(model, "serialized_model_proto") else b""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": tokenizer.get_vocab(),
        "added_tokens": {str(i): repr(token) for i, token in added.items()},
        "sentencepiece": _digest(proto),
        "sample": tokenizer(SAMPLE)["input_ids"],
    }


def _text(token: Any) -> str | None:
    return None if token is None else str(token)


# ---------------------------------------------------------------- models


def _combined(config: Mapping[str, Any], lines: Iterable[str]) -> str:
    kept = {name: value for name, value in config.items() if name not in _INCIDENTAL}
    whole = [json.dumps(kept, sort_keys=True, ensure_ascii=True, default=str), *sorted(lines)]
    return _digest("\n".join(whole).encode())


def _line(name: str, dtype: str, shape: Iterable[int], digest: str) -> str:
    return f"{json.dumps(name)} {dtype} {list(shape)} {digest}"


def _name_of(model: nn.Module) -> str:
    given = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    return Path(given).name or type(model).__name__


def _config_of(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return _plain(config) if hasattr(config, "to_dict") else {}


def _config_in(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        return {}
    try:
        return _plain(extra("transformers", of="lm").AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: its config.json cannot be read ({error})") from None


def _plain(config: Any) -> dict[str, Any]:
    """As it would be read from a file: tuples become lists and keys strings."""
    found: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return found


def _lines_of(model: nn.Module) -> Iterator[str]:
    seen: set[tuple[Any, ...]] = set()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = model.state_dict()
    for name in sorted(state, key=lambda name: (name in tied, name)):  # a tied tensor is saved under its source's name
        x = state[name]
        x = x.full_tensor() if hasattr(x, "full_tensor") else x
        if type(x) not in (Tensor, nn.Parameter) or x.is_meta:
            raise FormError(
                f"model_fingerprint: {name} is a {'meta tensor' if x.is_meta else type(x).__name__}, whose content is "
                "not at hand. Give the folder of the model instead."
            )
        place = (x.data_ptr(), x.shape, x.stride(), x.dtype)
        if x.numel() and place in seen:
            continue
        seen.add(place)
        raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield _line(name, _DTYPES.get(x.dtype, str(x.dtype)), x.shape, _digest(raw.data))


def _lines_in(folder: Path) -> list[str]:
    files = _weight_files(folder)
    tensors: dict[str, tuple[Path, int, int, Mapping[str, Any]]] = {}
    for path in files:
        if path.suffix != ".safetensors":
            continue
        for name, (start, end, entry) in _header(path).items():
            if name in tensors:
                raise BadInput(
                    f"{path}: holds {name}, which {tensors[name][0].name} holds too; one of them is not used"
                )
            tensors[name] = path, start, end, entry
    if not tensors:  # pickles are not opened; they are hashed whole
        return [_line(path.name, "file", [path.stat().st_size], file_hash(path)) for path in files]

    def line(name: str) -> str:
        path, start, end, entry = tensors[name]
        return _line(name, entry["dtype"], entry["shape"], _part_hash(path, start, end))

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(line, tensors))


def _weight_files(folder: Path) -> list[Path]:
    """Those that `transformers` would load: one file, or the shards of an index; else all that look like weights."""
    for stem in ("model.safetensors", "pytorch_model.bin"):
        if (folder / stem).is_file():
            return [folder / stem]
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    for pattern in ("*.safetensors", "*.bin", "*.gguf", "*.pt"):
        if found := sorted(folder.glob(pattern)):
            return found
    raise BadInput(f"{folder}: holds no weights (model.safetensors, or its shards with an index)")


def _header(path: Path) -> dict[str, tuple[int, int, Mapping[str, Any]]]:
    """{name: (first byte, byte after the last, {dtype, shape})} of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= path.stat().st_size - 8:
            raise BadInput(f"{path}: is cut off, or no safetensors file")
        header = json.loads(file.read(size))
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    found = {n: (8 + size + e["data_offsets"][0], 8 + size + e["data_offsets"][1], e) for n, e in entries.items()}
    if any(end > path.stat().st_size for _, end, _ in found.values()):
        raise BadInput(f"{path}: is cut off: its header names bytes behind its end")
    return found


def _part_hash(path: Path, start: int, end: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        for at in range(start, end, _BLOCK):
            digest.update(file.read(min(_BLOCK, end - at)))
    return digest.hexdigest()


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()
