"""`autotune explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import ConfigArgument, JsonOption, OutputOption
from autotune.cli.output import check_outputs, say, show
from autotune.config.files import load_tuned_and_record, make_folder, write_bytes_atomic, write_text_atomic
from autotune.errors import InputError
from autotune.explain.forecast import forecast
from autotune.explain.wording import record_missing
from autotune.report import explanation
from autotune.report import predict as predictions

Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page of its own: one file, no network.")]
Figures = Annotated[Path | None, typer.Option("--figures", metavar="DIR", help="Also write its figures as PNG and SVG.")]
Trace = Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="Also write the timeline as a Chrome trace, for Perfetto.")]
WhatIf = Annotated[str | None, typer.Option("--what-if", metavar="CHANGES", help="Predict: bandwidth=2x,cores=56,dtype=bf16.")]


def command(
    config: ConfigArgument,
    what_if: WhatIf = None,
    html: Html = None,
    figures: Figures = None,
    trace: Trace = None,
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Tell what a tuned config chose, what each choice gained, what binds each operator, and what is left.

    With --what-if alone, what that would change; with --html it joins the page.

    Example: autotune explain small.tuned.yaml --html report.html
    """
    check_outputs(html, trace, output)
    given = [file.resolve() for file in (html, trace, output) if file is not None]
    if len(set(given)) < len(given):
        raise InputError("each result needs a file of its own, got one twice (--html, --trace, --output); rename one")
    tuned, files = load_tuned_and_record(config), not (html is figures is trace is None)
    if what_if is not None and html is None and files:
        raise InputError("a what-if is shown in the terminal or on the page, got it with --figures or --trace alone; add --html FILE")
    if figures is not None:
        make_folder(figures)
    if what_if is not None and not files:
        from autotune.explain.whatif import what_if as predict

        show(predict(tuned, what_if), predictions.what_if, as_json, output)
        return
    if tuned.record is None:
        say(f"note: {record_missing(tuned.model)}")
    account = forecast(tuned, [what_if] if what_if is not None else [], common=html is not None, timeline=files)
    if html is not None:
        from autotune.report.html import page

        write_text_atomic(html, page(account))
        say(f"wrote {html}")
    if figures is not None:
        from autotune.report.figures import figures as drawn

        names = []
        for name, content in drawn(account):
            write_bytes_atomic(figures / name, content)
            names.append(name)
        say(f"wrote {len(names)} figures to {figures}")
    if trace is not None:
        from autotune.report.trace import trace as traced

        write_text_atomic(trace, traced(account.model, account.timelines))
        say(f"wrote {trace}")
    show(account, explanation.explanation, as_json, output)
