"""`autotune explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.options import ConfigArgument, JsonOption, OutputOption
from autotune.cli.output import check_outputs, say, show
from autotune.errors import InputError

Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page of its own: one file, no network.")]
Figures = Annotated[Path | None, typer.Option("--figures", metavar="DIR", help="Also write its figures as SVG.")]
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
    from autotune import api
    from autotune.config.files import make_folder, record_path, write_text_atomic

    check_outputs(html, trace, output, inputs=[config, record_path(config)])
    files = not (html is figures is trace is None)
    if what_if is not None and html is None and files:
        raise InputError("a what-if is shown in the terminal or on the page, got it with --figures or --trace alone; add --html FILE")
    if figures is not None:
        make_folder(figures)
    if what_if is not None and not files:
        from autotune.report import predict as predictions

        show(api.what_if(config, what_if), predictions.what_if, as_json, output)
        return
    account = api.explain(config, changes=[what_if] if what_if is not None else [], common=html is not None, timeline=files)
    if account.missing:
        say(f"note: {account.missing}")
    if html is not None:
        from autotune.report.html import page

        write_text_atomic(html, page(account))
        say(f"wrote {html}")
    if figures is not None:
        from autotune.report.figures import as_file
        from autotune.report.figures import figures as drawn

        drawings = list(drawn(account))
        for drawing in drawings:
            write_text_atomic(figures / f"{drawing.name}.svg", as_file(drawing))
        say(f"wrote {len(drawings)} figures to {figures}")
    if trace is not None:
        from autotune.report.trace import trace as traced

        write_text_atomic(trace, traced(account.model, account.timelines))
        say(f"wrote {trace}")
    from autotune.report import explanation

    show(account, explanation.explanation, as_json, output)
