"""Strict safetensors: canonical names, float32, the spec and a digest of the content in the header."""

import contextlib
import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.core.spec import GPTSpec

FORMAT = "twingpt"
FORMAT_VERSION = "1"

Tensors = dict[str, NDArray[Any]]


def save_tensors(path: Path, tensors: Tensors, spec: GPTSpec) -> str:
    """Write and fsync one file; returns the digest of its content. Raises OSError, leaving a part of the file."""
    spec_json = json.dumps(spec.to_dict(), sort_keys=True)
    digest = content_digest(tensors, spec_json)
    metadata = {"format": FORMAT, "format_version": FORMAT_VERSION, "spec": spec_json, "sha256": digest}
    write_safetensors(path, tensors, metadata)
    return digest


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write and fsync any tensors: the same ones with the same metadata are the same bytes. Raises OSError."""
    try:
        # safetensors writes the buffer as it lies in memory: a transposed view would come out scrambled.
        save_file({name: np.require(t, requirements="C") for name, t in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    _sort_metadata(path)
    fsync(path)


def _sort_metadata(path: Path) -> None:
    """Put a file's metadata into the order of its names: the library writes it in another order at every call."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(ordered) > size:
            raise OSError(f"the header of {path} does not fit into the {size} bytes that it has")
        # The format lets a header end in blanks.
        file.seek(8)
        file.write(ordered.ljust(size))


def load_tensors(path: Path) -> tuple[GPTSpec, Tensors, str]:
    """(spec, tensors, digest) of a file written by `save_tensors`.

    Raises TwinGPTError if it is missing, of another format, or if a single bit of it has changed.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise TwinGPTError(tr("{path} is not a twingpt checkpoint: bring it in with `twingpt convert`", path=path))
    if metadata.get("format_version") != FORMAT_VERSION:
        raise TwinGPTError(
            tr(
                "{path} has format version {version}, this twingpt reads {known}",
                path=path,
                version=metadata.get("format_version"),
                known=FORMAT_VERSION,
            )
        )
    spec_json = metadata.get("spec", "")
    if content_digest(tensors, spec_json) != metadata.get("sha256"):
        raise TwinGPTError(tr("{path} is damaged: its content does not match its checksum", path=path))
    try:
        spec = GPTSpec.from_dict(json.loads(spec_json))
    except (ValueError, TypeError, RecursionError, UsageError) as error:
        raise TwinGPTError(tr("{path} has a spec that cannot be read: {error}", path=path, error=error)) from None
    if spec.n_layer > len(tensors):
        # Before anyone lists what such a model needs: a damaged figure can ask for billions of names.
        raise TwinGPTError(
            tr(
                "{path} is damaged: it holds {tensors} tensors for {n_layer} layers",
                path=path,
                tensors=len(tensors),
                n_layer=spec.n_layer,
            )
        )
    return spec, tensors, metadata["sha256"]


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """(tensors, metadata) of any safetensors file whose types NumPy has. Raises TwinGPTError."""
    if not path.is_file():
        raise TwinGPTError(tr("{path} does not exist", path=path))
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise TwinGPTError(tr("{path} cannot be read as safetensors: {error}", path=path, error=error)) from None


def content_digest(tensors: Tensors, spec_json: str) -> str:
    """SHA-256 over the spec and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(spec_json.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(np.require(tensor, requirements="C").data)
    return digest.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file so that a crash leaves the old content or the new, never a part. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    fsync(temporary)
    temporary.replace(path)


def fsync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    # On macOS fsync stops at the drive's cache; only this asks the drive itself, where the file system knows it.
    full = getattr(fcntl, "F_FULLFSYNC", None)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if full is not None:
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, full)
                return
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
