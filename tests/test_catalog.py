from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from autotune import catalog
from autotune.catalog import (
    check_fits,
    find_model,
    find_profile,
    list_models,
    list_profiles,
    load_model_by_name,
    load_profile_by_name,
    nearest_model_that_fits,
    needed_memory_bytes,
)
from autotune.config.files import load_yaml, write_yaml
from autotune.config.model import Changes, Model, Table
from autotune.config.required_memory import required_memory_bytes
from autotune.errors import InputError, MachineError

GIB = 2**30
MIB = 1 << 20


@pytest.mark.parametrize("name", list_models())
def test_every_shipped_model_loads_under_its_own_name(name: str) -> None:
    model = load_model_by_name(name)
    assert model.name == name
    assert model.source
    assert model.description
    assert next(iter(load_yaml(find_model(name))[0])) == "schema"


def test_the_promised_models_are_shipped() -> None:
    assert {"small", "large", "mlperf", "dlrm-dcnv2", "rm2", "mlperf-1m", "large-s", "tiny"} <= set(list_models())


def test_every_shipped_profile_loads() -> None:
    for name in list_profiles():
        assert load_profile_by_name(name).name


@pytest.mark.parametrize(
    ("name", "tables", "table_gb", "dense_mib", "lookups_per_sample"),
    [
        ("small", 8, 2.0, 9.5, 400),
        ("large", 64, 393.2, 1046.8, 6400),
        ("mlperf", 26, 96.1, 9.0, 26),
        ("dlrm-dcnv2", 26, 104.5, 9.0, 214),
        ("rm2", 32, 4.1, 1.6, 2560),
        ("mlperf-1m", 26, 3.6, 9.0, 26),
    ],
)
def test_shipped_sizes_are_those_of_their_sources(
    name: str, tables: int, table_gb: float, dense_mib: float, lookups_per_sample: int
) -> None:
    model = load_model_by_name(name)
    assert model.num_tables == tables
    assert model.table_bytes / 1e9 == pytest.approx(table_gb, abs=0.06)
    assert model.dense_parameters * 4 / 2**20 == pytest.approx(dense_mib, abs=0.06)
    assert model.lookups_per_iteration == lookups_per_sample * model.minibatch


def test_scaled_copies_are_scaled_from_their_models() -> None:
    assert load_model_by_name("mlperf").changed(Changes(max_rows=10**6)).tables == load_model_by_name("mlperf-1m").tables
    assert load_model_by_name("large").changed(Changes(max_rows=100_000)).tables == load_model_by_name("large-s").tables


@pytest.mark.parametrize("name", ["small", "rm2", "mlperf-1m", "large-s", "tiny"])
def test_the_models_for_a_small_machine_fit_24_gib_with_room(name: str) -> None:
    assert required_memory_bytes(load_model_by_name(name)) < 12 * GIB


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_yaml("mine.yaml", load_model_by_name("tiny").changed(Changes(minibatch=2)))
    write_yaml("small", load_model_by_name("tiny"))
    assert find_model("mine.yaml") == Path("mine.yaml")
    assert load_model_by_name(tmp_path / "mine.yaml").minibatch == 2
    assert load_model_by_name("mine.yaml[max_rows=7]").tables[0].rows == 7
    assert load_model_by_name("small").name == "small"
    assert load_model_by_name("./small").name == "tiny"


def test_the_name_of_a_scaled_model_finds_it_again() -> None:
    scaled = load_model_by_name("small").changed(Changes(max_rows=10_000, minibatch=64))
    assert load_model_by_name(scaled.name) == scaled
    twice = scaled.changed(Changes(max_rows=100))
    assert load_model_by_name(twice.name) == twice


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smal", "unknown model 'smal'; did you mean small.*shipped: dlrm-dcnv2, large, .*path of a YAML file"),
        ("", "unknown model ''"),
        ("small.yaml", "model file not found: small.yaml; for the shipped model write small"),
        ("no/such", "model file not found: no/such; check the path"),
        ("small[rows=3]", "may change max_rows, minibatch, dtype, optimizer, table_storage, got 'rows=3'"),
        ("small[]", "may change max_rows, minibatch, dtype, optimizer, table_storage, got ''"),
        ("small[max_rows=0]", "max_rows must be positive, got 0"),
        ("small[dtype=fp16]", "dtype must be one of fp32, bf16, got 'fp16'"),
    ],
)
def test_an_unknown_model_is_refused_with_what_there_is(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model_by_name(name)


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(InputError, match="unknown profile 'nothing'"):
        find_profile("nothing")


def test_a_wheel_finds_its_files_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "autotune"
    (package / "models").mkdir(parents=True)
    (package / "models" / "only.yaml").write_text(find_model("tiny").read_text())
    monkeypatch.setattr(catalog.autotune.config, "__file__", str(package / "config" / "__init__.py"))
    assert list_models() == ["only"]
    assert list_profiles() == []


def test_the_nearest_model_is_of_the_same_shape_or_else_the_largest() -> None:
    for large, copy in [("large", "large-s"), ("mlperf", "mlperf-1m"), ("dlrm-dcnv2", "mlperf-1m")]:
        nearest = nearest_model_that_fits(24 * GIB, like=load_model_by_name(large))
        assert nearest is not None
        assert nearest.name == copy
    largest = nearest_model_that_fits(6 * GIB)
    assert largest is not None
    assert largest.name == "rm2"
    assert nearest_model_that_fits(1) is None


def test_a_model_too_large_is_refused_with_its_sizes_and_one_that_fits() -> None:
    check_fits(load_model_by_name("small"), 24 * GIB)
    message = (
        r"got 375 GiB for 24.0 GiB \(model large: tables 366 GiB, dense .* 4.09 GiB, activations 3.52 GiB, .*\); use large-s \(10.6 GiB\)"
    )
    with pytest.raises(MachineError, match=message) as caught:
        check_fits(load_model_by_name("large"), 24 * GIB)
    assert caught.value.exit_code == 3
    with pytest.raises(MachineError, match="no shipped model fits"):
        check_fits(load_model_by_name("tiny"), 1000)


DENSE = Model(
    name="dense", source="", description="", minibatch=64, bottom_mlp=(13, 64), top_mlp=(8192, 16384, 1), tables=(Table(rows=1000, dim=64),)
)


def test_every_rank_takes_memory_for_the_dense_layers_and_for_its_process() -> None:
    one, two = needed_memory_bytes(DENSE), needed_memory_bytes(DENSE, ranks=2)
    assert two - one > DENSE.dense_bytes + 320 * MIB
    assert two / 2 < needed_memory_bytes(DENSE, ranks=2, on_host=1) + MIB < one + MIB
    check_fits(DENSE, 3600 * MIB)
    with pytest.raises(MachineError, match=r"model dense of 2 ranks: .* in every rank, .*320 MiB for every process\); .* fewer sockets"):
        check_fits(DENSE, 3600 * MIB, ranks=2)


@pytest.mark.parametrize(("available_mib", "ranks"), [(600, 2), (300, 1)])
def test_processes_alone_may_be_too_much(available_mib: int, ranks: int) -> None:
    with pytest.raises(MachineError, match="no shipped model fits; free memory or raise the limit"):
        check_fits(load_model_by_name("tiny"), available_mib * MIB, ranks=ranks)


def test_timing_passes_alone_takes_memory_too() -> None:
    needed = needed_memory_bytes(DENSE)
    check_fits(DENSE, needed)
    with pytest.raises(MachineError, match=r"timing passes alone 1\.\d+ GiB"):
        check_fits(DENSE, needed, raced=True)
    check_fits(load_model_by_name("tiny"), 600 * MIB, raced=True)


@pytest.mark.parametrize(("name", "kind"), [("mlperf-1m", {"raced": True}), ("small", {"written": True, "ranks": 2})])
def test_the_model_that_is_refused_is_not_the_one_that_is_recommended(name: str, kind: dict[str, Any]) -> None:
    model = load_model_by_name(name)
    available = needed_memory_bytes(model, kind.get("ranks", 1))
    with pytest.raises(MachineError) as caught:
        check_fits(model, available, **kind)
    assert f"use {name} " not in str(caught.value)
    recommended = re.search(r"; use (\S+) \(", str(caught.value))
    assert recommended
    check_fits(load_model_by_name(recommended[1]), available, **kind)


def test_the_parts_of_several_ranks_are_brought_together_for_a_checkpoint() -> None:
    model = load_model_by_name("small")
    needed = needed_memory_bytes(model, 2)
    check_fits(model, needed, ranks=2)
    with pytest.raises(MachineError, match="joining tables for the checkpoint"):
        check_fits(model, needed, ranks=2, written=True)
