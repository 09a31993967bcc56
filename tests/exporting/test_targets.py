from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from autotune.config.tuned import Launch, TunedConfig
from autotune.errors import InputError
from autotune.exporting.targets import TARGETS, default_output, export
from autotune.ranks.launch import environment


def test_env_lines_give_a_shell_exactly_the_launch(tuned_config: TunedConfig) -> None:
    lines = export(tuned_config, "env")
    done = subprocess.run(["env", "-i", "/bin/bash", "-c", f"{lines}/usr/bin/env -0"], capture_output=True, check=True, text=True)
    seen = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert environment(tuned_config.launch).items() <= seen.items()
    assert seen["AUTOTUNE_TARGET"] == "it's $HOME"
    assert seen["OMP_PLACES"] == "{0},{1}"


def test_env_lines_for_several_sockets_bind_no_rank_to_the_cores_of_another(tuned_config: TunedConfig) -> None:
    lines = export(tuned_config.model_copy(update={"sockets": 2}), "env").splitlines()
    names = {line.removeprefix("export ").partition("=")[0] for line in lines}
    assert names == environment(tuned_config.launch).keys() - {"OMP_PLACES", "OMP_PROC_BIND"}


def test_env_lines_keep_what_the_user_tells_the_loader(tuned_config: TunedConfig) -> None:
    script = f"{export(tuned_config, 'env')}echo $GLIBC_TUNABLES"
    mine = "glibc.rtld.optional_static_tls=8192"
    done = subprocess.run(["/bin/bash", "-c", script], env={"GLIBC_TUNABLES": mine}, capture_output=True, check=True, text=True)
    assert done.stdout == f"{mine}:{tuned_config.launch.environment['GLIBC_TUNABLES']}\n"


def test_what_the_launch_names_itself_is_not_replaced() -> None:
    launch = Launch(threads=2, cpus=(0, 1), environment={"OMP_PLACES": "cores"})
    assert environment(launch) == {"OMP_NUM_THREADS": "2", "OMP_PLACES": "cores", "OMP_PROC_BIND": "true"}


def test_json_is_the_config(tuned_config: TunedConfig) -> None:
    text = export(tuned_config, "json")
    assert TunedConfig.model_validate_json(text) == tuned_config.model_copy(update={"record": None})
    assert next(iter(json.loads(text))) == "schema"


def test_the_torchrun_script_runs_the_model_from_the_config(tuned_config: TunedConfig, tmp_path: Path) -> None:
    config = tuned_config.model_copy(update={"model": "small[max_rows=10]"})
    file = tmp_path / "a file.yaml"
    script = tmp_path / "start.sh"
    script.write_text(export(config, "torchrun", file))
    fake = tmp_path / "torchrun"
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$OMP_NUM_THREADS" "${OMP_PLACES-unbound}" "$PYTHONSAFEPATH" "$@"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", str(script), "--steps", "3"], env={"PATH": str(tmp_path)}, capture_output=True, check=True, text=True
    )
    arguments = ["--standalone", "--nproc-per-node=1", "-m", "autotune", "run", "small[max_rows=10]", "--config", str(file), "--steps", "3"]
    assert done.stdout.splitlines() == ["2", "unbound", "1", *arguments]


@pytest.mark.parametrize("to", TARGETS)
def test_the_same_config_gives_the_same_text(tuned_config: TunedConfig, to: str) -> None:
    assert export(tuned_config, to, "x.yaml") == export(tuned_config.model_copy(deep=True), to, "x.yaml")


def test_an_unknown_target_is_answered_with_those_there_are(tuned_config: TunedConfig) -> None:
    with pytest.raises(InputError, match=r"unknown export target 'jsn'.*did you mean 'json'.*env, torchrun, json"):
        export(tuned_config, "jsn")


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("small", "small.tuned.yaml"),
        ("some/mine.yaml", "mine.tuned.yaml"),
        ("small[max_rows=10,minibatch=4]", "small-max_rows=10-minibatch=4.tuned.yaml"),
        ("some/mine.yaml[max_rows=10]", "mine-max_rows=10.tuned.yaml"),
    ],
)
def test_a_config_is_named_after_its_model(model: str, file: str) -> None:
    assert default_output(model) == Path(file)
