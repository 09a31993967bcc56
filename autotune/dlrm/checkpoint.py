"""Weights on disk, under the public DLRM's names, so that they load there and theirs load here."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from autotune.config.files import replacing
from autotune.config.model import Model
from autotune.dlrm.model import DLRM
from autotune.errors import InputError

_LISTED = 5
"""Names an error lists before it counts the rest."""


def state_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint of `model`.

    Tables are ``emb_l.{t}.weight`` [rows, dim]. Layer i of the MLPs is ``bot_l.{2i}`` and ``top_l.{2i}``, ``.weight`` [out, in] and
    ``.bias`` [out]: the odd numbers are the activations between.

    Source: github.com/facebookresearch/dlrm, dlrm_s_pytorch.py.
    """
    shapes: dict[str, tuple[int, ...]] = {f"emb_l.{t}.weight": (table.rows, table.dim) for t, table in enumerate(model.tables)}
    for name, sizes in (("bot_l", model.bottom_mlp), ("top_l", model.top_sizes)):
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            shapes[f"{name}.{2 * i}.weight"] = (outputs, inputs)
            shapes[f"{name}.{2 * i}.bias"] = (outputs,)
    return shapes


OPTIMIZER_STATE = "adagrad_sums"
"""Key of Adagrad's sums in a checkpoint, by the name of their weight; the public DLRM does not read it."""


def save_checkpoint(
    path: str | Path,
    state: Mapping[str, torch.Tensor],
    meta: Mapping[str, Any] | None = None,
    optimizer_state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint whole or not at all (temporary file, then rename).

    Besides ``state_dict`` it holds what the public DLRM reads back (``epoch``, ``iter``, ``nbatches``, ``train_loss``, ... and the state of
    a plain SGD optimizer), zero unless `meta` gives it.

    Args:
        path: the file; its folder must exist.
        state: tensors by name, see `state_shapes`.
        meta: further entries: numbers, strings, lists and dicts of them. ``learning_rate`` also goes into the optimizer's state.
        optimizer_state: of a `DLRM`; none or empty where the optimizer keeps none.

    Raises:
        InputError: the file cannot be written.
    """
    entries = {**_public_entries(len(state), float((meta or {}).get("learning_rate", 0.0))), **(meta or {}), "state_dict": _compact(state)}
    if optimizer_state:
        entries[OPTIMIZER_STATE] = _compact(optimizer_state)
    try:
        with replacing(path) as file:
            torch.save(entries, file)
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # torch's writer fails on its way out
            raise error.__context__ from None
        raise InputError(f"a checkpoint must be writable, got {error} ({path}); choose another path or free space there") from error


@dataclass(frozen=True)
class Checkpoint:
    """What a file held."""

    state: dict[str, torch.Tensor]
    """Weights by name."""
    optimizer_state: dict[str, torch.Tensor]
    """Adagrad's sums by the name of their weight; empty where the file has none."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a checkpoint: a state dict itself, or one under the key ``state_dict``.

    Nothing but tensors and plain values is unpickled. Files in the current format are mapped, not copied: their pages are read
    when touched, and writing to the tensors leaves the file alone.

    Raises:
        InputError: the file cannot be read, or is not such a checkpoint.
    """
    path = Path(path)
    try:
        with path.open("rb"):
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise InputError(f"a checkpoint must be a readable file, got {error.strerror or error} ({path}); correct the path") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # What torch says about pickles names a switch that runs code from the file.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "other content" if unsafe else (str(error) or "an empty file").splitlines()[0].split(". ")[0][:200]
        raise InputError(f"a checkpoint must be a torch file of tensors and plain values, got {reason} ({path}); save it again") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else loaded
    sums = loaded.get(OPTIMIZER_STATE, {}) if isinstance(loaded, Mapping) and state is not loaded else {}
    return Checkpoint(_tensors(state, path), _tensors(sums, path))


def _tensors(state: Any, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(state, Mapping):
        raise InputError(f"a checkpoint must hold a dict of tensors, got a {type(state).__name__} ({path}); save the model's state dict")
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            rule = "a state dict must map names to tensors"
            raise InputError(f"{rule}, got {name!r}: {type(value).__name__} ({path}); save it under the key 'state_dict' or by itself")
    return dict(state)


def check_state(model: Model, state: Mapping[str, torch.Tensor], place: str = "checkpoint") -> None:
    """Hold the weights of a checkpoint against `model`.

    Args:
        place: where the state comes from, for the message.

    Raises:
        InputError: tensors are missing, not expected, of another shape, or not of floating point; they are named.
    """
    _check(model, state, state_shapes(model), "the tensors of a checkpoint", place)


def check_optimizer_state(model: Model, state: Mapping[str, torch.Tensor], place: str = "checkpoint") -> None:
    """The same of Adagrad's sums: fp32 [rows] for a table, the weight's shape for a layer."""
    shapes = {name: shape[:1] if name.startswith("emb_l.") else shape for name, shape in state_shapes(model).items()}
    _check(model, state, shapes, "the optimizer's state in a checkpoint", place)


def read_checkpoint_of(model: Model, path: str | Path) -> Checkpoint:
    """A checkpoint that is known to be of `model`. Raises: InputError: it cannot be read, or is of another model."""
    checkpoint = read_checkpoint(path)
    check_state(model, checkpoint.state, str(path))
    if model.optimizer == "adagrad" and checkpoint.optimizer_state:
        check_optimizer_state(model, checkpoint.optimizer_state, str(path))
    return checkpoint


def load_into(dlrm: DLRM, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Put a checkpoint into a model of its shapes; what is worth a note."""
    dlrm.load_state_dict(checkpoint.state)
    if dlrm.model.optimizer == "sgd":
        return ()
    if not checkpoint.optimizer_state:
        return ("the checkpoint holds no state of Adagrad: its sums begin at zero",)
    dlrm.load_optimizer_state(checkpoint.optimizer_state)
    return ()


def _check(model: Model, state: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], what: str, place: str) -> None:
    wrong = [
        f"{name} is {_kind(state[name])} {list(state[name].shape)} instead of a dense float tensor {list(shape)}"
        for name, shape in shapes.items()
        if name in state and not _is_dense_float(state[name], shape)
    ]
    kinds = (
        ("missing", [name for name in shapes if name not in state]),
        ("unexpected", [name for name in state if name not in shapes]),
        ("mis-shaped", wrong),
    )
    problems = [f"{kind}: {_listed(names)}" for kind, names in kinds if names]
    if problems:
        rule = f"{what} must be those of model {model.name}"
        raise InputError(f"{rule}, got {'; '.join(problems)} ({place}); load it with the model it was saved from")


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype) if tensor.layout == torch.strided else f"{tensor.layout} {tensor.dtype}"


def _is_dense_float(tensor: torch.Tensor, shape: tuple[int, ...]) -> bool:
    return tuple(tensor.shape) == shape and tensor.is_floating_point() and tensor.layout == torch.strided


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _public_entries(parameters: int, learning_rate: float) -> dict[str, Any]:
    """What the public DLRM takes from a checkpoint besides the weights. Its plain SGD numbers the parameters and keeps nothing more."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.empty(0)) for _ in range(max(1, parameters))], lr=learning_rate)
    counts = dict.fromkeys(("epoch", "nepochs", "iter", "nbatches", "nbatches_test"), 0)
    return {**counts, **dict.fromkeys(("train_loss", "total_loss", "test_acc"), 0.0), "opt_state_dict": optimizer.state_dict()}


def _compact(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CPU tensors without autograd; a small view of a large storage is copied out, since torch writes whole storages."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    used_bytes: Counter[int] = Counter()
    for tensor in tensors.values():
        used_bytes[tensor.untyped_storage().data_ptr()] += tensor.nbytes
    # Padding between tables that share one allocation is a few per cent at most; copying those would double the memory.
    return {
        name: tensor.clone() if tensor.untyped_storage().nbytes() > 1.25 * used_bytes[tensor.untyped_storage().data_ptr()] else tensor
        for name, tensor in tensors.items()
    }
