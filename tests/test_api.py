"""The Python API: the commands' names as functions, whatever was imported before."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autotune
from autotune import catalog
from autotune.bench.frames import frame_of
from autotune.config.knobs import RunConfig
from autotune.config.profile import Profile
from autotune.config.tuned import TunedConfig
from autotune.errors import InputError


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, autotune; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


# What takes long to import is imported once; each child then meets the package as a fresh process does.
_EVERY_NAME = """
import os, torch, pandas, autotune
for name in autotune.__all__:
    child = os.fork()
    if not child:
        assert callable(getattr(autotune, name)), name
        import autotune.api
        assert callable(getattr(autotune, name)), name
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_every_name_is_callable_before_and_after_its_package_is_imported() -> None:
    subprocess.run([sys.executable, "-c", _EVERY_NAME], check=True)


def test_run_takes_a_name_and_a_run_config() -> None:
    result = autotune.run("tiny", steps=4, config=RunConfig(threads=1))
    assert result.steps == 4
    assert result.config.threads == 1


def test_an_unknown_model_is_an_input_error() -> None:
    with pytest.raises(InputError, match="tinny"):
        autotune.run("tinny")


def test_tune_names_the_model_as_verify_will_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware_profile: Profile) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text((catalog.find_model("tiny")).read_text())
    named = []
    monkeypatch.setattr("autotune.tuning.study.tune", lambda lockstep, **options: named.append(options["name"]))
    monkeypatch.setattr("autotune.tuning.study.check_profile", lambda *_: None)
    for model in ("tiny", file, autotune.load_model("tiny")):
        autotune.tune(model, output=tmp_path / "out.yaml", profile=hardware_profile)
    assert named == ["tiny", str(file), "tiny"]


def test_export_and_explain_take_a_file_or_fail_clearly(tmp_path: Path) -> None:
    for function in (autotune.explain, lambda path: autotune.export(path, "env")):
        with pytest.raises(InputError, match=r"missing\.yaml"):
            function(tmp_path / "missing.yaml")


def test_every_result_has_a_frame(hardware_profile: Profile, tuned_config: TunedConfig) -> None:
    ceilings = autotune.frame(hardware_profile)
    measured = hardware_profile.ceilings
    assert set(ceilings["ceiling"]) == {name for name in type(measured).model_fields if getattr(measured, name)}
    assert list(autotune.frame(tuned_config)["operator"]) == [gain.operator for gain in tuned_config.gains]
    assert len(autotune.frame(autotune.explain(tuned_config))) == len(autotune.explain(tuned_config).findings)


def test_the_page_of_commands_names_columns_that_there_are(tuned_config: TunedConfig) -> None:
    page = (Path(__file__).parents[1] / "autotune/cli/README.md").read_text(encoding="utf-8")
    (named,) = re.findall(r"autotune\.frame\(table\)\[(\[.*?\])\]", page)
    assert tuned_config.verdicts
    assert set(json.loads(named)) <= set(frame_of(tuned_config.verdicts).columns)
