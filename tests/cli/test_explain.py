"""`explain` and `export`: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import invoke, refused

from autotune.config.files import dump_yaml, record_path, write_tuned
from autotune.config.tuned import TunedConfig


def test_explain_prints_text_or_json_and_writes_a_file(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    text, as_json = invoke("explain", config_file, "-o", out), invoke("explain", config_file, "--json")
    assert text.exit_code == as_json.exit_code == 0
    assert "memory bound" in text.stdout
    assert json.loads(as_json.stdout)["findings"][0]["kind"] == "compute_bound"
    assert "operators" in json.loads(as_json.stdout)
    assert out.read_text() == as_json.stdout


def test_explain_writes_page_figures_and_trace_over_what_is_there(config_file: Path, tmp_path: Path, full_config: TunedConfig) -> None:
    write_tuned(config_file, full_config)
    html, folder, trace = tmp_path / "report.html", tmp_path / "made" / "figures", tmp_path / "trace.json"
    html.write_text("old")
    result = invoke("explain", config_file, "--html", html, "--figures", folder, "--trace", trace)
    assert result.exit_code == 0, result.output
    assert html.read_text().startswith("<!DOCTYPE html>")
    assert {"roofline.svg", "timeline.svg"} <= {file.name for file in folder.iterdir()}
    assert json.loads(trace.read_text())["traceEvents"]
    assert f"wrote {html}" in result.stderr
    assert "at most" in result.stdout


def test_explain_refuses_places_it_cannot_write_to_before_it_begins(config_file: Path, tmp_path: Path) -> None:
    refused(invoke("explain", config_file, "--html", tmp_path / "no" / "report.html"), 2, "output folder does not exist")
    (tmp_path / "file").write_text("")
    refused(invoke("explain", config_file, "--figures", tmp_path / "file"), 2, "must be a folder", "choose another path")
    refused(invoke("explain", config_file, "--html", tmp_path), 2, "output must be a file")


def test_an_old_config_has_a_page_but_no_what_if(config_file: Path, tmp_path: Path) -> None:
    html = tmp_path / "report.html"
    assert invoke("explain", config_file, "--html", html).exit_code == 0
    assert "the model and the profile of the tuning run are not at hand" in html.read_text()
    refused(invoke("explain", config_file, "--what-if", "bandwidth=2x"), 2, "tune again")


def test_explain_without_the_record_says_what_is_missing(config_file: Path, tmp_path: Path) -> None:
    record_path(config_file).unlink()
    html = tmp_path / "report.html"
    result = invoke("explain", config_file, "--html", html)
    assert result.exit_code == 0, result.output
    (note,) = (line for line in result.stderr.splitlines() if line.startswith("note: "))
    assert "no record of small lies beside its config" in note
    assert "never raced" not in result.stdout
    assert "embedding_bag.forward: memory" in result.stdout
    assert "no record of small lies beside its config" in html.read_text()
    assert "no record" in json.loads(invoke("explain", config_file, "--json").stdout)["missing"]


def test_explain_refuses_the_record_of_another_config(config_file: Path, tuned_config: TunedConfig) -> None:
    later = tuned_config.provenance.model_copy(update={"created": "2026-01-01T00:00:00Z"})
    config_file.write_text(dump_yaml(tuned_config.model_copy(update={"provenance": later}).file_form()))
    refused(invoke("explain", config_file), 2, "a record must belong to the config", str(record_path(config_file)), str(config_file))
    assert invoke("export", config_file, "--to", "env").exit_code == 0


@pytest.mark.parametrize("to", ["env", "torchrun", "json", "slurm", "mpirun"])
def test_export_prints_or_writes(config_file: Path, tmp_path: Path, to: str) -> None:
    printed = invoke("export", config_file, "--to", to)
    assert printed.exit_code == 0
    assert invoke("export", config_file, "--to", to, "-o", tmp_path / "out").stdout == ""
    assert (tmp_path / "out").read_text() == printed.stdout


def test_an_unknown_target_is_refused(config_file: Path) -> None:
    refused(invoke("export", config_file, "--to", "pbs"), 2, "unknown export target 'pbs'", "env, torchrun, json, slurm, mpirun")
