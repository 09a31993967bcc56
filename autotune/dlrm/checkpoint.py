"""Weights on disk, under the public DLRM's names, so that they load there and theirs load here."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch

from autotune.config.files import replacing
from autotune.config.interactions import INTERACTIONS
from autotune.config.model import Model
from autotune.dlrm.model import DLRM
from autotune.errors import InputError
from autotune.ops.native import ADAGRAD_EPSILON

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


_OWN_SUMS = "adagrad_sums"
_MOST_ITERATIONS = 2**62
"""Where files of version 0.1.0 keep Adagrad's sums, by the name of their weight; now they lie where the public DLRM has them."""
CATEGORY_MAPPING = "category_mapping"
"""Key of how the categories of Criteo rows became rows of the tables, see `BatchSource.mapping`."""
INTERACTION = "interaction"
"""Key of the model's interaction. The public DLRM's files lack it: there the width of ``top_l.0.weight`` tells."""


def save_checkpoint(
    path: str | Path,
    state: Mapping[str, torch.Tensor],
    meta: Mapping[str, Any] | None = None,
    optimizer_state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint whole or not at all (temporary file, then rename).

    Besides ``state_dict`` it holds what the public DLRM reads back (``epoch``, ``iter``, ``nbatches``, ``train_loss``, ...), zero unless
    `meta` gives it, and ``opt_state_dict``: for plain SGD, or for its row-wise Adagrad where there is an optimizer's state.

    Args:
        path: the file; its folder must exist.
        state: tensors by name, see `state_shapes`.
        meta: further entries: numbers, strings, lists and dicts of them. ``learning_rate`` and ``iter`` also go into the optimizer's state.
        optimizer_state: of a `DLRM`; none or empty where the optimizer keeps none.

    Raises:
        InputError: the file cannot be written.
    """
    entries = {**dict.fromkeys(_PUBLIC_COUNTS, 0), **dict.fromkeys(_PUBLIC_METRICS, 0.0), **(meta or {}), "state_dict": _compact(state)}
    optimizer = _public_optimizer(tuple(state), _compact(optimizer_state or {}), entries.get("learning_rate", 0.0), entries["iter"])
    try:
        with replacing(path) as file, _Writer(file) as writer:
            torch.save({**entries, "opt_state_dict": optimizer}, writer)
    except RuntimeError as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # torch's writer fails on its way out
            raise error.__context__ from None
        raise InputError(f"a checkpoint must be writable, got {error} ({path}); choose another path or free space there") from error


class _Writer:
    """A file whose failure is raised as it was: torch puts an error of its own in the place of any, Ctrl-C and a full disk among them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._failure: BaseException | None = None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, RuntimeError) and self._failure is not None:
            raise self._failure from None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self._failure = self._failure or error
            raise

    def flush(self) -> None:
        self._file.flush()


@dataclass(frozen=True)
class Checkpoint:
    """What a file held."""

    state: dict[str, torch.Tensor]
    """Weights by name."""
    optimizer_state: dict[str, torch.Tensor]
    """Adagrad's sums by the name of their weight; empty where the file has none."""
    iterations: int = 0
    """Training iterations behind it, 0 where the file does not say."""
    mapping: str | None = None
    """How categories became rows when it was trained; None where the file does not say."""
    interaction: str | None = None
    """Of the model that it was trained with; None where the file does not say."""
    notes: tuple[str, ...] = ()
    """What was converted."""


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The tensors of a checkpoint: a state dict itself, or one under the key ``state_dict``.

    Nothing but tensors and plain values is unpickled; numbers of numpy, which the public DLRM's metrics are, are read by code of our own.
    Files in the current format are mapped, not copied: their pages are read when touched, and writing to the tensors leaves the file alone.

    Raises:
        InputError: the file cannot be read, or is not such a checkpoint.
    """
    path = Path(path)
    try:
        with path.open("rb"):
            pass
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_NUMBERS):
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise InputError(f"a checkpoint must be a readable file, got {error.strerror or error} ({path}); correct the path") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        # What torch says about pickles names a switch that runs code from the file, or a byte of it.
        known = not isinstance(error, pickle.UnpicklingError | KeyError | IndexError | AttributeError | TypeError)
        reason = (str(error) or "an empty file").splitlines()[0].split(". ")[0][:200] if known else "other content"
        raise InputError(f"a checkpoint must be a torch file of tensors and plain values, got {reason} ({path}); save it again") from error
    nested = isinstance(loaded, Mapping) and "state_dict" in loaded
    entries: Mapping[str, Any] = loaded if nested else {}
    state = _tensors(loaded["state_dict"] if nested else loaded, path)
    sums, notes = _tensors(entries.get(_OWN_SUMS, {}), path), tuple[str, ...]()
    if not sums:
        sums, notes = _sums(state, entries.get("opt_state_dict"))
    mapping, iterations, interaction = entries.get(CATEGORY_MAPPING), entries.get("iter"), entries.get(INTERACTION)
    return Checkpoint(
        state,
        sums,
        iterations=_count(iterations, path),
        mapping=mapping if isinstance(mapping, str) else None,
        interaction=interaction if isinstance(interaction, str) else None,
        notes=notes,
    )


class _Dtype:
    """A numpy dtype inside a checkpoint: its kind and size, ``f8``, and its byte order; whatever else a pickle says of it is left out."""

    def __init__(self, code: str, *options: object) -> None:
        if code not in _NUMBER_CODES:
            raise pickle.UnpicklingError(f"a number of numpy type {code!r}")
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")


_NUMBER_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def _number(dtype: _Dtype, data: bytes) -> bool | int | float:
    """The value of a numpy scalar inside a checkpoint."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a numpy scalar of other content")
    value: bool | int | float = np.frombuffer(data, dtype=np.dtype(dtype.order + dtype.code), count=1)[0].item()
    return value


# numpy 2 moved the module; a file has the name of the version that wrote it.
_NUMPY_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Dtype, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def _tensors(state: Any, path: Path) -> dict[str, torch.Tensor]:
    """A state dict by the names that a model has without its wrappers."""
    if not isinstance(state, Mapping):
        raise InputError(f"a checkpoint must hold a dict of tensors, got a {type(state).__name__} ({path}); save the model's state dict")
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if not (isinstance(name, str) and isinstance(value, torch.Tensor)):
            rule = "a state dict must map names to tensors"
            raise InputError(f"{rule}, got {name!r}: {type(value).__name__} ({path}); save it under the key 'state_dict' or by itself")
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if plain in tensors:
            raise InputError(f"a state dict must hold {plain} once, got it again as {name} ({path}); save the model without its wrapper")
        tensors[plain] = value
    return tensors


_WRAPPERS = ("module", "_orig_mod")
"""What DistributedDataParallel and torch.compile put into the names of the modules they wrap."""


def _sums(state: Mapping[str, torch.Tensor], optimizer: Any) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Adagrad's sums by the name of their weight, from a torch optimizer's state, which numbers the weights in their order; and notes.

    The public row-wise Adagrad keeps ``momentum`` [rows] of a table and ``sum`` of a layer, torch's own keeps ``sum`` of both. The mean of
    a row of ``sum`` is what row-wise Adagrad would have added up over the same gradients.
    """
    saved = optimizer.get("state") if isinstance(optimizer, Mapping) else None
    if not isinstance(saved, Mapping):
        return {}, ()
    sums: dict[str, torch.Tensor] = {}
    notes: tuple[str, ...] = ()
    for number, name in enumerate(state):
        entry = saved.get(number)
        value = entry.get("momentum", entry.get("sum")) if isinstance(entry, Mapping) else None
        if not isinstance(value, torch.Tensor):
            continue
        if name.startswith("emb_l.") and value.ndim == 2:
            value = value.mean(1)
            notes = ("the checkpoint's Adagrad is element-wise in tables, ours is row-wise: it goes on from the mean of every row's sums",)
        sums[name] = value
    return sums, notes


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
    if checkpoint.interaction not in (None, model.interaction):  # which may be as wide as this one
        rule = f"a checkpoint for model {model.name} must be of interaction {model.interaction}"
        raise InputError(f"{rule}, got {checkpoint.interaction} ({path}); set interaction: {checkpoint.interaction} in the model's file")
    check_state(model, checkpoint.state, str(path))
    if model.optimizer == "adagrad" and checkpoint.optimizer_state:
        check_optimizer_state(model, checkpoint.optimizer_state, str(path))
    return checkpoint


def _count(iterations: object, path: str | Path) -> int:
    """The entry ``iter`` of a file, 0 where it has none that is a whole number."""
    if not isinstance(iterations, int):
        return 0
    if not 0 <= iterations <= _MOST_ITERATIONS:
        rule = f"a checkpoint's iter must be a count of iterations, from 0 to {_MOST_ITERATIONS}"
        raise InputError(f"{rule}, got {iterations if abs(iterations) < 2**64 else 'a longer number'} ({path}); save it again")
    return iterations


def load_into(dlrm: DLRM, checkpoint: Checkpoint, mapping: str | None = None) -> tuple[str, ...]:
    """Put a checkpoint into a model of its shapes; what is worth a note. Stochastic rounding goes on behind its iterations.

    Args:
        mapping: how the data of this run makes rows of categories, see `BatchSource.mapping`; None where it has none.
    """
    dlrm.load_state_dict(checkpoint.state)
    dlrm.continue_from(checkpoint.iterations)
    notes = _mapping_notes(checkpoint.mapping, mapping)
    if dlrm.model.optimizer == "sgd":
        return notes
    if not checkpoint.optimizer_state:
        return (*notes, "the checkpoint holds no state of Adagrad: its sums begin at zero")
    dlrm.load_optimizer_state(checkpoint.optimizer_state)
    return (*notes, *checkpoint.notes)


def _mapping_notes(trained: str | None, here: str | None) -> tuple[str, ...]:
    if here is None or trained == here:
        return ()
    said = "does not say how categories became rows" if trained is None else f"was trained with categories {trained}"
    step = "under another mapping its tables hold the rows of other categories; give --categories as it was trained"
    return (f"the checkpoint {said}, and this run reads them {here}: {step}",)


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
        rule, others = f"{what} must be those of model {model.name}", _interactions_of(model, state.get("top_l.0.weight"))
        trained = f"set interaction: {' or '.join(others)} in the model's file if it was trained so"
        step = trained if others else "load it with the model it was saved from"
        raise InputError(f"{rule}, got {'; '.join(problems)} ({place}); {step}")


def _interactions_of(model: Model, weight: torch.Tensor | None) -> list[str]:
    """The interactions behind which the first layer of the top MLP has as many inputs as `weight`, where the model's own has not."""
    inputs = weight.shape[1] if weight is not None and weight.ndim == 2 else 0
    widths = {name: width(model.num_features, model.embedding_dim) for name, width in INTERACTIONS.items()}
    return [name for name, width in widths.items() if width == inputs != model.top_input]


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype) if tensor.layout == torch.strided else f"{tensor.layout} {tensor.dtype}"


def _is_dense_float(tensor: torch.Tensor, shape: tuple[int, ...]) -> bool:
    return tuple(tensor.shape) == shape and tensor.is_floating_point() and tensor.layout == torch.strided


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


_PUBLIC_COUNTS = ("epoch", "nepochs", "iter", "nbatches", "nbatches_test")
_PUBLIC_METRICS = ("train_loss", "total_loss", "test_acc", "test_auc")


def _public_optimizer(names: tuple[str, ...], sums: Mapping[str, torch.Tensor], learning_rate: float, iterations: int) -> dict[str, Any]:
    """What the public DLRM's optimizers take from a checkpoint: the state of every weight by its number, and one group of them all, which
    has the options of plain SGD and of row-wise Adagrad."""
    state: dict[int, dict[str, Any]] = {number: {"step": iterations} for number in range(len(names))}
    for number, name in enumerate(names):
        if name in sums:
            state[number]["momentum" if name.startswith("emb_l.") else "sum"] = sums[name]
    zero = dict.fromkeys(("momentum", "dampening", "weight_decay", "lr_decay", "initial_accumulator_value"), 0.0)
    options = {"lr": learning_rate, "eps": ADAGRAD_EPSILON, "nesterov": False, **zero}
    return {"state": state, "param_groups": [{**options, "params": list(range(len(names)))}]}


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
