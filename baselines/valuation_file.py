"""A valuation in a file: JSON, whose numbers come back to the last bit, and nothing that runs when it is read.

Floats are written by their shortest decimal that is read back as the same number. What JSON has no form for is an
object with one key that begins with ``$``: arrays and scalars of NumPy (with their type), numbers that are not finite,
tuples, and mappings whose keys are no plain strings. Whatever else is refused when it is saved, not when it is read.

The file is ASCII, carries a SHA-256 of its content, and appears whole or not at all.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

__all__ = ["read", "write"]

_FORMAT = "baselines.Valuation"
_VERSION = 1
_SUFFIX = ".json"
_LONGEST_FLOAT = 8  # bytes of Python's own

_Made = TypeVar("_Made")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content`, which `read` gives back; raises what `Valuation.save` does."""
    if path.suffix != _SUFFIX:
        raise ValueError(
            f"path must end in {_SUFFIX!r}, got {str(path)!r}; for other formats save the table, as by "
            "to_frame().to_parquet(path)"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {str(path)!r} does not exist; make it first")
    body = {name: _encoded(value, name) for name, value in content.items()}
    text = json.dumps({"format": _FORMAT, "version": _VERSION, "sha256": _digest(body), "content": body})
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        whole = Path(folder) / path.name
        whole.write_text(text, encoding="ascii")
        whole.replace(path)


def read(path: Path, make: Callable[..., _Made]) -> _Made:
    """Return what `make` makes of the content, by name; raises what `Valuation.load` does."""
    try:
        file = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # not text, or not JSON
        raise ValueError(f"{str(path)!r} is no file of a valuation, or is damaged: {error}") from error
    if not isinstance(file, dict) or file.get("format") != _FORMAT:
        raise ValueError(f"{str(path)!r} is no file of a valuation; give one that Valuation.save has written")
    if file.get("version") != _VERSION:
        raise ValueError(
            f"{str(path)!r} is of version {file.get('version')!r} of the format, this reads version {_VERSION}"
        )
    body = file.get("content")
    if not isinstance(body, dict) or file.get("sha256") != _digest(body):
        raise ValueError(f"{str(path)!r} is damaged: its content does not have its checksum")
    try:
        return make(**{name: _decoded(value) for name, value in body.items()})
    except (TypeError, ValueError, AttributeError) as error:  # written by something else
        raise ValueError(f"{str(path)!r} is no file of a valuation: {error}") from error


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def _encoded(value: Any, name: str) -> Any:
    """Return `value` as what JSON is made of; `name` is what an error calls it."""
    if isinstance(value, np.generic) or type(value) is np.ndarray:  # others hold more, such as a mask
        data = np.asarray(value)
        if not _is_plain(data.dtype):
            raise TypeError(f"{name} must be of bools, integers, floats or strings to be saved, got {data.dtype}")
        kind = "$scalar" if isinstance(value, np.generic) else "$array"
        return {kind: [data.dtype.str, list(data.shape), [_encoded(item, name) for item in data.ravel().tolist()]]}
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encoded(item, f"{name}[{key!r}]") for key, item in value.items()}
        keys = [_encoded(key, f"a key of {name}") for key in value]
        return {"$mapping": [[key, _encoded(value[k], f"{name}[{k!r}]")] for key, k in zip(keys, value, strict=True)]}
    if type(value) in (list, tuple):
        items = [_encoded(item, f"{name}[{number}]") for number, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if type(value) is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"{name} is of type {type(value).__name__}, which is not saved; None, numbers, strings, NumPy arrays, and "
        "lists, tuples and mappings of these are. Replace it by dataclasses.replace(valuation, parameters=...)"
    )


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether Python's bools, ints, floats or strings hold whatever an array of `dtype` does."""
    return dtype.kind in "biuU" or (dtype.kind == "f" and dtype.itemsize <= _LONGEST_FLOAT)


def _decoded(value: Any) -> Any:
    """Return what was encoded."""
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$array": [dtype, shape, data]} if _is_plain(np.dtype(dtype)):
            return np.array(_decoded(data), dtype).reshape(shape)
        case {"$scalar": [dtype, [], [item]]} if _is_plain(np.dtype(dtype)):
            return np.array(_decoded(item), dtype)[()]
        case {"$mapping": items}:
            return {_decoded(key): _decoded(item) for key, item in items}
        case {"$tuple": items}:
            return tuple(_decoded(items))
        case {"$float": text}:
            return float(text)
    return {key: _decoded(item) for key, item in value.items()}
