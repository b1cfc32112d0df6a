"""How DistillKit packs the classes and log-probabilities of a position into bytes.

Legacy: ids of b = ceil(log2 V) bits, floor(64/b) of them in a 64-bit word, the first lowest; the first exact_k values
as they are, and the others as coefficients of powers of their place 1, 2, ... (negative powers where inverted), that
of its square root last.

Current: ids of b bits, one after the other, highest bit first; bytes of the exact values, then of the coefficients of
terms in the place 0, 1, ... (or from 0 to 1), then for each bin a scale and its residuals of some bits; of differences
from value to value, unless delta_encoding is off. A residual of one bit is -scale or scale, of b bits (q - 2^(b-1))
times scale.

Source: DistillKit's compression/legacy.py, monotonic_logprobs.py, bitpack.py and config.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kullback._errors import BadInput

from .format import Numbers

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def bits_of(num_classes: int) -> int:
    """ceil(log2 V), as float32 has it."""
    return int(torch.log2(torch.tensor(num_classes, dtype=torch.float32)).ceil())


class Legacy:
    """Of a `LegacyLogitCompressionConfig`: k, exact_k, polynomial_degree, vocab_size, invert_polynomial,
    with_sqrt_term, term_dtype.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.num_classes = _whole(config, "vocab_size")
        self.k, self.exact_k = _whole(config, "k"), _whole(config, "exact_k")
        self.degree = _whole(config, "polynomial_degree")
        self.inverted = bool(config.get("invert_polynomial", True))
        self.root = bool(config.get("with_sqrt_term", False))
        if self.exact_k > self.k:
            raise BadInput(f"the config has exact_k={self.exact_k} above k={self.k}")

    def decode(self, record: Mapping[str, Any]) -> tuple[Numbers, Numbers]:
        """(ids, values), (R, k)."""
        words = _matrix(record["packed_indices"], np.uint64, "packed_indices")
        bits = bits_of(self.num_classes)
        each = 64 // bits
        _fits("packed_indices", words.shape[1], -(-self.k // each))
        shifts = (bits * np.arange(each)).astype(np.uint64)
        ids = (words[:, :, None] >> shifts) & np.uint64((1 << bits) - 1)
        exact = _matrix(record["exact_values"], np.float32, "exact_values")
        _fits("exact_values", exact.shape[1], self.exact_k)
        place = np.arange(1, self.k - self.exact_k + 1, dtype=np.float32)
        powers = [place ** np.float32(-i if self.inverted else i) for i in range(self.degree + 1)]
        terms = np.stack([*powers, *([np.sqrt(place)] if self.root else [])], -1)
        coefficients = _matrix(record["coeffs"], np.float32, "coeffs")
        if self.exact_k < self.k:
            _fits("coeffs", coefficients.shape[1], terms.shape[1])
            exact = np.concatenate([exact, coefficients @ terms.T], -1)
        return ids.reshape(len(ids), -1)[:, : self.k].astype(np.int64), exact.astype(np.float32)


class Current:
    """Of a `DistributionQuantizationConfig`: d, k, exact_k, exact_dtype, polynomial_terms, term_dtype, residual_bins,
    delta_encoding, normalize_t. How residuals were rounded (error_diffusion) does not matter here.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.num_classes, self.k, self.exact_k = (_whole(config, name) for name in ("d", "k", "exact_k"))
        self.exact_dtype = _dtype(config.get("exact_dtype", "float32"))
        self.terms: Sequence[int | str] = config.get("polynomial_terms") or ()
        self.term_dtype = _dtype(config.get("term_dtype", "float32"))
        self.bins = [
            (_dtype(each["scale_dtype"]), _whole(each, "element_bits"), _whole(each, "num_elements"))
            for each in config.get("residual_bins") or ()
        ]
        self.deltas = bool(config.get("delta_encoding", True))
        self.unit = bool(config.get("normalize_t", False))
        rest = self.k - self.exact_k
        if rest < sum(many for _, _, many in self.bins) or rest < 0:
            raise BadInput(f"the config has more values than k={self.k}: exact_k={self.exact_k} and its bins")
        if odd := [term for term in self.terms if term not in ("sqrt", "exp") and not isinstance(term, int)]:
            raise BadInput(f"the config has the term {odd[0]!r}; known are whole powers, 'sqrt' and 'exp'")

    def decode(self, record: Mapping[str, Any]) -> tuple[Numbers, Numbers]:
        """(ids, log-probabilities), (R, k)."""
        data = torch.from_numpy(_matrix(record["compressed_logprobs"], np.uint8, "compressed_logprobs"))
        exact_bytes = self.exact_k * self.exact_dtype.itemsize
        term_bytes = len(self.terms) * self.term_dtype.itemsize
        bin_bytes = [dtype.itemsize + -(-bits * many // 8) for dtype, bits, many in self.bins]
        _fits("compressed_logprobs", data.shape[1], exact_bytes + term_bytes + sum(bin_bytes))
        exact = _read(data[:, :exact_bytes], self.exact_dtype)
        rest = self.k - self.exact_k
        residuals, at = [], exact_bytes + term_bytes
        for (dtype, bits, many), size in zip(self.bins, bin_bytes, strict=True):
            scale = _read(data[:, at : at + dtype.itemsize], dtype)
            codes = torch.from_numpy(_unpacked(data[:, at + dtype.itemsize : at + size].numpy(), bits, many))
            steps = 2.0 * codes - 1.0 if bits == 1 else codes.double() - 2.0 ** (bits - 1)
            residuals.append(steps.float() * scale)
            at += size
        values = torch.cat([*residuals, torch.zeros(len(data), rest - sum(many for *_, many in self.bins))], -1)
        if self.terms and rest:
            coefficients = _read(data[:, exact_bytes : exact_bytes + term_bytes], self.term_dtype).to(self.term_dtype)
            fit = (self._terms(rest) * coefficients[:, None, :]).sum(-1)
            values = values + fit.float()
        found = torch.cat([exact, values], -1)
        found = found.cumsum(-1) if self.deltas else found
        packed = _matrix(record["bytepacked_indices"], np.uint8, "bytepacked_indices")
        bits = bits_of(self.num_classes)
        _fits("bytepacked_indices", packed.shape[1], -(-self.k * bits // 8))
        return _unpacked(packed, bits, self.k), found.numpy()

    def _terms(self, many: int) -> torch.Tensor:
        """(many, terms), in the dtype of the coefficients."""
        place = (
            torch.linspace(0, 1, many, dtype=self.term_dtype) if self.unit else torch.arange(many).to(self.term_dtype)
        )
        named = {"sqrt": torch.sqrt, "exp": torch.exp}
        return torch.stack([place**t if isinstance(t, int) else named[t](place) for t in self.terms], -1)


def _unpacked(data: Numbers, bits: int, many: int) -> Numbers:
    """(R, many) integers of so many bits, highest first, of bytes (R, n)."""
    found = np.unpackbits(data, axis=-1)[:, : bits * many].reshape(len(data), many, bits).astype(np.int64)
    weights = np.left_shift(np.int64(1), np.arange(bits - 1, -1, -1))
    whole: Numbers = (found * weights).sum(-1)
    return whole


def _read(data: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return data.contiguous().view(dtype).float()


def _matrix(rows: Sequence[Sequence[Any]], dtype: Any, name: str) -> Numbers:
    lengths = {len(row) for row in rows}
    if not lengths:
        raise BadInput(f"{name} has no rows")
    if len(lengths) > 1:
        raise BadInput(f"{name} has rows of {min(lengths)} to {max(lengths)} values, but all have as many")
    return np.array(rows, dtype=dtype).reshape(len(rows), -1)


def _fits(name: str, there: int, needed: int) -> None:
    if there != needed:
        raise BadInput(
            f"{name} has {there} values a row, but the config makes {needed}: it is not the one that they were "
            "written with"
        )


def _whole(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadInput(f"the config has {name}={value!r}, but a whole number is needed")
    return value


def _dtype(name: Any) -> torch.dtype:
    if name not in _DTYPES:
        raise BadInput(f"the config has the dtype {name!r}; known are {', '.join(_DTYPES)}")
    return _DTYPES[name]
