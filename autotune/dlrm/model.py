"""The optimized DLRM on one socket: bottom MLP, embedding bags, dot interaction, top MLP, binary cross entropy, SGD.

The semantics are the public DLRM's: ReLU after every layer but the last, which ends in a sigmoid; pairwise dots of the lower triangle
without the diagonal, behind the dense vector. Every pass writes into buffers that stay from step to step, and hands them on without copies:
the bottom MLP and the bags write the feature buffer [N, T+1, E] that the interaction reads.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from autotune.config.knobs import EmbeddingForwardKnobs, EmbeddingUpdateKnobs, InteractionKnobs, Knobs, LayerKnobs, RunConfig
from autotune.config.model import Model
from autotune.config.profile import Topology
from autotune.data.batches import Batch, BatchSource
from autotune.dlrm.alone import TableAlone, tables_alone
from autotune.errors import InputError
from autotune.ops import embedding_bag, interaction, libxsmm, loss
from autotune.ops.base import Operator
from autotune.ops.layer import Activation, Layer
from autotune.ops.mlp import PASSES, LayerPass, default_knobs
from autotune.ops.native import empty_rows, kernels, zeros
from autotune.ops.timing import Recorder

_ROTATE_BATCHES = 4
"""Batches an embedding operator rotates through when it is timed alone."""


def layer_shapes(model: Model) -> Iterator[tuple[str, int, int, Activation]]:
    """(``bottom_mlp.0``, C, K, activation) of every layer, bottom first."""
    for name, sizes in (("bottom_mlp", model.bottom_mlp), ("top_mlp", model.top_sizes)):
        for i, (inputs, outputs) in enumerate(pairwise(sizes)):
            last = name == "top_mlp" and i == len(sizes) - 2
            yield f"{name}.{i}", inputs, outputs, "sigmoid" if last else "relu"


def default_config(model: Model, machine: Topology | None = None, threads: int | None = None) -> RunConfig:
    """The choice without tuning: a thread per allowed physical core, and the default of every pass.

    Args:
        model: gives the shapes, and how look-ups are distributed.
        machine: gives cores and pages; None takes the CPUs this process may use.
        threads: of the team, instead of one per core.

    Raises:
        InputError: threads below 1.
    """
    if threads is None:
        threads = machine.physical_cores if machine else len(os.sched_getaffinity(0))
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}; leave it out to use every allowed core")
    operators: dict[str, Knobs] = {
        embedding_bag.FORWARD: embedding_bag.default_forward(model.minibatch, model.num_tables, model.embedding_dim, threads),
        embedding_bag.UPDATE: embedding_bag.default_update(model.embedding_dim, threads, model.data.distribution == "uniform"),
        interaction.FORWARD: InteractionKnobs(),
        interaction.BACKWARD: InteractionKnobs(),
    }
    for layer in _passes(model):
        operators[layer.key] = default_knobs(*layer.shape[:4], threads, model.dtype)
    return RunConfig(threads=threads, huge_pages=machine is None or machine.huge_pages != "never", operators=operators)


_DRAWN = 0.5
"""Share of the layers' passes that take random knobs: what is learned shall hold for defaults too."""


def random_config(model: Model, machine: Topology, threads: int, seed: str) -> RunConfig:
    """The default configuration with random candidates of a tuner in about half of the layers' passes.

    Each knob is drawn from the values that the knobs drawn before it leave, so that a value is as likely as another however many
    candidates have it.
    """
    config, generator = default_config(model, machine, threads), random.Random(seed)
    operators = dict(config.operators)
    for layer in _passes(model):
        legal = (knobs for knobs in layer.candidates(machine, threads) if threads % knobs.thread_columns == 0)
        candidates = [knobs for knobs in legal if knobs.implementation == "blocked"]
        if not candidates or generator.random() >= _DRAWN:
            continue
        for name in generator.sample(("bn", "bc", "bk", "loop_order", "thread_columns"), 5):
            value = generator.choice(sorted({getattr(knobs, name) for knobs in candidates}))
            candidates = [knobs for knobs in candidates if getattr(knobs, name) == value]
        operators[layer.key] = candidates[0]
    return config.model_copy(update={"operators": operators})


def _passes(model: Model) -> Iterator[LayerPass]:
    """Every pass of every layer. The first bottom layer has no backward-data: nothing below it learns."""
    for name, inputs, outputs, activation in layer_shapes(model):
        bottom, first = name.startswith("bottom"), name.endswith(".0")
        for which in PASSES:
            if which == "backward_data" and bottom and first:
                continue
            masked = which == "backward_data" and not first
            shape = (model.minibatch, inputs, outputs, activation, masked)
            yield LayerPass(f"{name}.{which}", which, *shape, dtype=model.dtype, optimizer=model.optimizer)


class _Buffers:
    """Activations and gradients of one minibatch size."""

    def __init__(self, model: Model, samples: int, threads: int) -> None:
        self.samples = samples
        self.features = zeros(samples, model.num_features, model.embedding_dim, threads=threads)
        self.d_features = zeros(samples, model.num_features, model.embedding_dim, threads=threads)
        self.bottom = [empty_rows(samples, k, threads) for k in model.bottom_mlp[1:-1]] + [self.features[:, 0]]
        self.d_bottom = [empty_rows(samples, k, threads) for k in model.bottom_mlp[1:-1]] + [self.d_features[:, 0]]
        self.top = [empty_rows(samples, k, threads) for k in model.top_sizes]
        self.d_top = [empty_rows(samples, k, threads) for k in model.top_sizes]


@dataclass(frozen=True)
class _DenseOperators:
    """Passes between which the embedding bags run, in order."""

    bottom_forward: Sequence[Operator]
    top: Sequence[Operator]
    """From the interaction's forward pass to its backward pass."""
    bottom_backward: Sequence[Operator]


class DLRM:
    """A model in memory, ready to train.

    Args:
        model: shapes, learning rate, seed.
        config: what to use where; passes it does not name take their default. None: every default.
        seed: of the initial weights; None takes the model's.
        machine: from which defaults are derived; None takes the CPUs this process may use.

    Raises:
        InputError: the config names a pass the model has not, or gives it knobs of another kind.
        MachineError: the memory cannot be had.
    """

    def __init__(self, model: Model, config: RunConfig | None = None, seed: int | None = None, *, machine: Topology | None = None) -> None:
        self.model, self.machine = model, machine
        self.recorder = Recorder()
        seed = model.seed if seed is None else seed
        self.config = complete(config, model, machine)
        torch.set_num_threads(self.config.threads)
        self._make_tables(seed)
        generator = torch.Generator().manual_seed(seed)
        self._layers: dict[str, Layer] = {}
        for name, inputs, outputs, activation in layer_shapes(model):
            forward = self._layer_knobs(f"{name}.forward")
            backward = self._layer_knobs(f"{name}.backward_data") if name != "bottom_mlp.0" else forward
            self._layers[name] = Layer(
                inputs, outputs, activation, generator=generator, forward=forward, backward_data=backward,
                dtype=model.dtype, optimizer=model.optimizer,
            )  # fmt: skip
        self._bottom = [layer for name, layer in self._layers.items() if name.startswith("bottom")]
        self._top = [layer for name, layer in self._layers.items() if name.startswith("top")]
        self._buffers = _Buffers(model, model.minibatch, self.config.threads)

    def _make_tables(self, seed: int) -> None:
        rows = [table.rows for table in self.model.tables]
        self.bags = embedding_bag.EmbeddingBags(
            rows, self.model.embedding_dim, huge_pages=self.config.huge_pages, threads=self.config.threads, seed=seed,
            dtype=self.model.dtype, optimizer=self.model.optimizer,
        )  # fmt: skip

    def _move_tables(self) -> None:
        self.bags.move(self.config.huge_pages, self.config.threads)

    @property
    def minibatch(self) -> int:
        """Samples per iteration, over all ranks."""
        return self.model.minibatch

    def own_labels(self, batch: Batch) -> torch.Tensor:
        """The labels that `probabilities` are about."""
        return batch.labels

    def of_all_ranks(self, values: np.ndarray) -> np.ndarray:
        """Values of this rank's samples, with those of every other rank; here there is none."""
        return values

    def configure(self, config: RunConfig) -> None:
        """Use other knobs from now on, with the same weights. Changing `huge_pages` copies the tables; all else is cheap.

        Raises:
            InputError: the config names a pass the model has not, or gives it knobs of another kind.
        """
        config = complete(config, self.model, self.machine)
        if config == self.config:
            return
        self.config = config
        torch.set_num_threads(config.threads)
        kernels.fork_join(1, config.threads)  # a team that grows starts threads: here, rather than in the next step
        self._move_tables()
        for name, layer in self._layers.items():
            forward = self._layer_knobs(f"{name}.forward")
            layer.configure(forward, self._layer_knobs(f"{name}.backward_data") if name != "bottom_mlp.0" else forward)

    def step(self, batch: Batch) -> float:
        """One training iteration; returns the loss before the update.

        Raises:
            IndexError: an index outside its table; nothing has been changed.
            ValueError: the batch does not fit the model.
        """
        buffers, rate, threads = self._forward(batch), self.model.learning_rate, self.config.threads
        measure = self.recorder.measure
        with measure(loss.KEY):
            value = loss.binary_cross_entropy(buffers.top[-1], batch.labels, buffers.d_top[-1])
        for i in reversed(range(len(self._top))):
            layer, name = self._top[i], f"top_mlp.{i}"
            with measure(f"{name}.backward_data"):
                mask = buffers.top[i] if i > 0 else None
                layer.backward_data(buffers.d_top[i + 1], mask, buffers.d_top[i], self._layer_knobs(f"{name}.backward_data"), threads)
            with measure(f"{name}.backward_weights"):
                layer.backward_weights(buffers.d_top[i + 1], buffers.top[i], rate, self._layer_knobs(f"{name}.backward_weights"), threads)
        self._backward_interaction(buffers)
        with measure(embedding_bag.UPDATE):
            self.bags.update(_lookups(batch), buffers.d_features[:, 1:], rate, self._update_knobs(), threads)
        self._backward_bottom(batch, buffers)
        return value

    def forward(self, batch: Batch) -> torch.Tensor:
        """Click probabilities, fp32 [N]. Raises as `step` does."""
        self._forward(batch)
        return self.probabilities()

    def probabilities(self) -> torch.Tensor:
        """Click probabilities of the last batch that went forward, before its update: fp32 [N]."""
        return self._buffers.top[-1][:, 0].clone()

    def operators(self, source: BatchSource) -> list[Operator]:
        """Every pass in the order it runs, on the live tables; an embedding pass is timed on batches of `source`."""
        samples = self.model.minibatch
        batches = [_lookups(source.batch(i)) for i in range(_ROTATE_BATCHES)]
        dense = self._dense_operators()
        return [
            *dense.bottom_forward,
            embedding_bag.EmbeddingForward(self.bags, batches, samples),
            *dense.top,
            embedding_bag.EmbeddingUpdate(self.bags, batches, samples),
            *dense.bottom_backward,
        ]

    def tables_alone(self, source: BatchSource) -> list[TableAlone]:
        """Every table by itself, on batches of `source`."""
        batches = [_lookups(source.batch(i)) for i in range(_ROTATE_BATCHES)]
        return tables_alone(self.bags, range(self.model.num_tables), batches, self.model.minibatch)

    def _dense_operators(self) -> _DenseOperators:
        samples, model = self.model.minibatch, self.model
        layers = list(_passes(model))
        forward = [layer for layer in layers if layer.key.endswith(".forward")]
        backward = [layer for layer in reversed(layers) if not layer.key.endswith(".forward")]
        top = [
            interaction.Interaction("forward", samples, model.num_features, model.embedding_dim),
            *(layer for layer in forward if layer.key.startswith("top")),
            loss.Loss(samples),
            *(layer for layer in backward if layer.key.startswith("top")),
            interaction.Interaction("backward", samples, model.num_features, model.embedding_dim),
        ]
        of_bottom = [[layer for layer in side if layer.key.startswith("bottom")] for side in (forward, backward)]
        return _DenseOperators(of_bottom[0], top, of_bottom[1])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights in fp32 under the public DLRM's names: ``emb_l.<t>.weight``, ``bot_l.<2i>.weight``, ``top_l.<2i>.bias`` ...

        Live in an fp32 model; copies where they are kept in halves.
        """
        return {f"emb_l.{t}.weight": self.bags.table(t) for t in range(self.model.num_tables)} | self._dense_state()

    def _named_layers(self) -> Iterator[tuple[str, Layer]]:
        for side, layers in (("bot_l", self._bottom), ("top_l", self._top)):
            yield from ((f"{side}.{2 * i}", layer) for i, layer in enumerate(layers))

    def _dense_state(self) -> dict[str, torch.Tensor]:
        state = {}
        for name, layer in self._named_layers():
            state[f"{name}.weight"], state[f"{name}.bias"] = layer.weights()
        return state

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """What Adagrad has summed, live, by the name of the weight: fp32 [rows] for a table, the weight's shape for a layer. SGD: empty."""
        tables = {f"emb_l.{t}.weight": self.bags.state(t) for t in range(self.model.num_tables)}
        return {name: state for name, state in tables.items() if state is not None} | self._dense_optimizer_state()

    def _dense_optimizer_state(self) -> dict[str, torch.Tensor]:
        return {f"{name}.{kind}": value for name, layer in self._named_layers() for kind, value in (layer.state() or {}).items()}

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy in what `optimizer_state` of a model of these shapes gave."""
        for name, value in self.optimizer_state().items():
            value.copy_(state[name])

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy weights in. Names and shapes are those of `state_dict`; see `dlrm.checkpoint.check_state` for input from files."""
        for t in range(self.model.num_tables):
            self.bags.load(t, state[f"emb_l.{t}.weight"])
        self._load_dense(state)

    def _load_dense(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, layer in self._named_layers():
            layer.load(state[f"{name}.weight"], state[f"{name}.bias"])

    def _forward(self, batch: Batch) -> _Buffers:
        buffers, threads = self._buffers_for(batch), self.config.threads
        self._forward_bottom(batch.dense, buffers)
        with self.recorder.measure(embedding_bag.FORWARD):
            self.bags.forward(_lookups(batch), buffers.features[:, 1:], self._forward_knobs(), threads)
        self._forward_top(buffers)
        return buffers

    def _forward_bottom(self, dense: torch.Tensor, buffers: _Buffers) -> None:
        for i, layer in enumerate(self._bottom):
            key = f"bottom_mlp.{i}.forward"
            with self.recorder.measure(key):
                below = dense if i == 0 else buffers.bottom[i - 1]
                layer.forward(below, buffers.bottom[i], self._layer_knobs(key), self.config.threads)

    def _forward_top(self, buffers: _Buffers) -> None:
        """The interaction and all above it."""
        threads, measure = self.config.threads, self.recorder.measure
        with measure(interaction.FORWARD):
            dots = self.config.operators[interaction.FORWARD]
            assert isinstance(dots, InteractionKnobs)
            interaction.forward(buffers.features, buffers.top[0], dots, threads)
        for i, layer in enumerate(self._top):
            key = f"top_mlp.{i}.forward"
            with measure(key):
                layer.forward(buffers.top[i], buffers.top[i + 1], self._layer_knobs(key), threads)

    def _backward_interaction(self, buffers: _Buffers) -> None:
        with self.recorder.measure(interaction.BACKWARD):
            knobs = self.config.operators[interaction.BACKWARD]
            assert isinstance(knobs, InteractionKnobs)
            interaction.backward(buffers.features, buffers.d_top[0], buffers.d_features, knobs, self.config.threads)

    def _backward_bottom(self, batch: Batch, buffers: _Buffers) -> None:
        rate, threads, measure = self.model.learning_rate, self.config.threads, self.recorder.measure
        self._mask_dense(buffers)
        for i in reversed(range(len(self._bottom))):
            layer, name = self._bottom[i], f"bottom_mlp.{i}"
            below = buffers.bottom[i - 1] if i > 0 else batch.dense
            if i > 0:
                with measure(f"{name}.backward_data"):
                    knobs = self._layer_knobs(f"{name}.backward_data")
                    layer.backward_data(buffers.d_bottom[i], below, buffers.d_bottom[i - 1], knobs, threads)
            with measure(f"{name}.backward_weights"):
                layer.backward_weights(buffers.d_bottom[i], below, rate, self._layer_knobs(f"{name}.backward_weights"), threads)

    def _mask_dense(self, buffers: _Buffers) -> None:
        """The gradient that the interaction gives the dense vector is behind the last ReLU: mask it in place."""
        last = len(self._bottom) - 1
        with self.recorder.measure(f"bottom_mlp.{last}.backward_weights"):
            d_dense, dense = buffers.d_bottom[last], buffers.bottom[last]
            torch.ops.aten.threshold_backward.grad_input(d_dense, dense, 0.0, grad_input=d_dense)

    def _forward_knobs(self) -> EmbeddingForwardKnobs:
        knobs = self.config.operators[embedding_bag.FORWARD]
        assert isinstance(knobs, EmbeddingForwardKnobs)
        return knobs

    def _update_knobs(self) -> EmbeddingUpdateKnobs:
        knobs = self.config.operators[embedding_bag.UPDATE]
        assert isinstance(knobs, EmbeddingUpdateKnobs)
        return knobs

    def _layer_knobs(self, key: str) -> LayerKnobs:
        knobs = self.config.operators[key]
        assert isinstance(knobs, LayerKnobs)
        return knobs

    def _buffers_for(self, batch: Batch) -> _Buffers:
        if batch.dense.shape[0] != self._buffers.samples:
            self._buffers = _Buffers(self.model, batch.dense.shape[0], self.config.threads)
        return self._buffers


def complete(config: RunConfig | None, model: Model, machine: Topology | None = None) -> RunConfig:
    """`config` with the default of every pass that it does not name.

    Raises:
        InputError: a pass that the model has not, knobs of another kind, libxsmm in bf16, or a thread grid that does not divide the
            threads.
        MachineError: a pass is to run on libxsmm, which is not here.
    """
    default = default_config(model, machine, config.threads if config else None)
    if config is None:
        return default
    for key, knobs in config.operators.items():
        if key not in default.operators:
            rule = f"an operator pass must be one of model {model.name}"
            raise InputError(f"{rule}, got {key!r} (config: operators); remove it or tune this model anew")
        if type(knobs) is not type(default.operators[key]):
            wanted = default.operators[key].kind
            place = f"config: operators.{key}.kind"
            raise InputError(f"knobs of {key} must be of kind {wanted}, got {knobs.kind} ({place}); tune this model anew")
        taken = embedding_bag.strategies(model.dtype, model.optimizer)
        if isinstance(knobs, EmbeddingUpdateKnobs) and knobs.strategy not in taken:
            rule = f"the strategy of an update in {model.dtype} with {model.optimizer} must be one of {', '.join(taken)}"
            raise InputError(f"{rule}, got {knobs.strategy} (config: operators.{key}); choose one of them")
        if isinstance(knobs, LayerKnobs) and knobs.implementation == "libxsmm" and model.dtype != "fp32":
            rule = f"the implementation of a layer in {model.dtype} must be blocked or torch, since libxsmm serves fp32 alone"
            raise InputError(f"{rule}, got libxsmm (config: operators.{key}.implementation); choose one of them, or tune this model anew")
        if isinstance(knobs, LayerKnobs) and config.threads % knobs.thread_columns:
            raise InputError(
                f"thread_columns must divide threads ({config.threads}), got {knobs.thread_columns} (config: operators.{key}); set it to 1"
            )
    libxsmm.require_for(config, "the config")
    return config.model_copy(update={"operators": {**default.operators, **config.operators}})


def _lookups(batch: Batch) -> embedding_bag.Lookups:
    return embedding_bag.Lookups(batch.indices, batch.offsets)
