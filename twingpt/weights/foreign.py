"""Foreign checkpoints that are told apart by what lies there, and the pickled ones: nanoGPT's and the old script's.

Pickles are only read, never written, and only with weights_only=True.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.init import Weights
from twingpt.core.language import tr
from twingpt.core.params import TOKEN_EMBEDDING
from twingpt.core.spec import GPTSpec
from twingpt.weights.format import Tensors
from twingpt.weights.huggingface import CONFIG_FILE
from twingpt.weights.naming import NANOGPT, SEED_SCRIPT, from_foreign

Source = Literal["native", "hf", "nanogpt", "script"]

SOURCES: tuple[Source, ...] = get_args(Source)


def import_torch(path: Path, load: Callable[[Path], Any]) -> tuple[Source, GPTSpec, Weights, int]:
    """(format, spec, weights, step) of nanoGPT's ckpt.pt or of the seed script's, told apart by their keys.

    load: reads the pickle safely (see `load_pickle`). Raises TwinGPTError for anything else.
    """
    content = load(path)
    if not isinstance(content, dict) or "model" not in content:
        raise TwinGPTError(
            tr("{path} is neither nanoGPT's ckpt.pt nor the old training script's: no key 'model'", path=path)
        )
    tensors = _tensors(path, content["model"])
    try:
        if "model_args" in content:
            step = int(content.get("iter_num", 0))
            return "nanogpt", *_from_nanogpt(_settings(path, content, "model_args"), tensors), step
        if "cfg" in content:
            step = int(content.get("step", 0))
            return "script", *_from_seed_script(_settings(path, content, "cfg"), tensors), step
    except KeyError as error:
        raise TwinGPTError(tr("{path} has no setting or tensor {error}", path=path, error=error)) from None
    except (UsageError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise TwinGPTError(
            tr("{path} describes no model that twingpt knows: {error}", path=path, error=error)
        ) from None
    raise TwinGPTError(
        tr("{path} is neither nanoGPT's ckpt.pt (model_args) nor the old training script's (cfg)", path=path)
    )


def _tensors(path: Path, model: Any) -> Tensors:
    import torch

    if not isinstance(model, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in model.items()
    ):
        raise TwinGPTError(tr("{path} has under 'model' no table of tensors", path=path))
    return {
        name.removeprefix("_orig_mod."): np.asarray(tensor.detach().float().cpu().numpy())
        for name, tensor in model.items()
    }


def _settings(path: Path, content: dict[str, Any], key: str) -> dict[str, Any]:
    if not isinstance(content[key], dict):
        raise TwinGPTError(tr("{path} has under {key!r} no table of settings", path=path, key=key))
    return dict(content[key])


def _from_nanogpt(args: dict[str, Any], tensors: Tensors) -> tuple[GPTSpec, Weights]:
    spec = GPTSpec(
        vocab_size=args["vocab_size"],
        block_size=args["block_size"],
        n_layer=args["n_layer"],
        n_head=args["n_head"],
        n_embd=args["n_embd"],
        bias=args["bias"],
        dropout=float(args.get("dropout", 0.0)),
        activation="gelu",
        tie_embeddings=True,
        residual_init="scaled",
    )
    return spec, from_foreign(NANOGPT, spec, tensors)


def _from_seed_script(cfg: dict[str, Any], tensors: Tensors) -> tuple[GPTSpec, Weights]:
    spec = GPTSpec(
        vocab_size=tensors[TOKEN_EMBEDDING].shape[0],
        block_size=cfg["block_size"],
        n_layer=cfg["n_layer"],
        n_head=cfg["n_head"],
        n_embd=cfg["n_embd"],
        dropout=float(cfg["dropout"]),
    )
    return spec, from_foreign(SEED_SCRIPT, spec, tensors)


def load_pickle(path: Path) -> Any:
    """torch.load with weights_only=True, which runs no code from the file. Raises TwinGPTError."""
    if not path.is_file():
        raise TwinGPTError(tr("{path} does not exist", path=path))
    try:
        import torch
    except ImportError:
        raise TwinGPTError(tr("reading a .pt file needs torch: pip install 'twingpt[torch]'")) from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign or damaged pickle raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TwinGPTError(
            tr("{path} cannot be read as a torch checkpoint: {reason}", path=path, reason=reason)
        ) from None


def detect_format(source: Path) -> Literal["native", "hf", "torch"]:
    """What lies there, by its files. Raises UsageError if it is a file that twingpt does not know."""
    if not source.is_file():
        # Also what does not exist, as RUN/best: `find_checkpoint` alone knows which names mean a checkpoint.
        return "hf" if (source / CONFIG_FILE).is_file() else "native"
    if source.suffix in (".pt", ".pth", ".bin"):
        return "torch"
    if source.suffix == ".safetensors":
        return "native"
    raise UsageError(
        tr("{source} is no checkpoint that twingpt knows: a run, a Hugging Face folder or a ckpt.pt", source=source)
    )
