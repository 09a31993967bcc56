"""The network between ranks as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autotune.config.network import Network
from autotune.report.layout import Column, table
from autotune.report.numbers import ms, percent
from autotune.units import format_bytes, format_rate, format_time, plural

if TYPE_CHECKING:
    from rich.console import RenderableType

    from autotune.config.measured import RankRow


def network_tables(network: Network, width: int) -> list[RenderableType]:
    """`probe --sockets`: what each operation reaches, by size and fitted; which interface is used; talking beside computing."""
    fits = network.fits
    head = f"network of {network.ranks} ranks on {plural(network.hosts, 'host')}: {network.backend} on {network.interface}"
    fitted = table(
        [
            Column("operation", [_name(fit.operation, fit.form) for fit in fits], justify="left"),
            Column("ranks", [str(fit.ranks) for fit in fits]),
            Column("latency", [format_time(fit.latency_s) for fit in fits]),
            Column("bandwidth", [format_rate(fit.bandwidth_bytes_per_s, "bytes") for fit in fits]),
            Column("residual", [percent(fit.residual) for fit in fits], need=5),
            Column("worst", [percent(fit.worst) for fit in fits], need=3),
        ],
        width,
        title=head,
    )
    interfaces = table(
        [
            Column("interface", [interface.name for interface in network.interfaces], justify="left"),
            Column("1 MiB", [_rate(interface.bandwidth_bytes_per_s) for interface in network.interfaces]),
            Column("used", ["yes" if interface.used else "" for interface in network.interfaces], justify="left"),
        ],
        width,
    )
    together = network.together
    talking = table(
        [
            Column("together", ["computing", "transfer", "both", "computing meanwhile"], justify="left"),
            Column(
                "ms", [ms(value) for value in (together.compute_s, together.transfer_s, together.both_s, together.compute_while_talking_s)]
            ),
            Column("", ["", "", f"{percent(together.hidden)} hidden", f"{together.compute_slowdown:.2f}x as long"], justify="left"),
        ],
        width,
    )
    return [fitted, _points(network, width), *([interfaces] if network.interfaces else []), talking]


def _points(network: Network, width: int) -> RenderableType:
    points = [point for point in network.points if point.ranks == network.ranks or point.operation == "point_to_point"]
    return table(
        [
            Column("transfer", [_name(point.operation, point.form) for point in points], justify="left"),
            Column("bytes sent", [format_bytes(point.message_bytes) for point in points]),
            Column("messages", [str(point.messages) for point in points], need=4),
            Column("time", [format_time(point.time_s) for point in points]),
            Column("rate", [format_rate(point.message_bytes / point.time_s, "bytes") for point in points], need=6),
        ],
        width,
    )


def rank_table(ranks: Sequence[RankRow], width: int) -> RenderableType:
    """Every rank's part of an iteration."""
    columns = [
        Column("rank", [str(row.rank) for row in ranks]),
        Column("compute ms", [ms(row.compute_s) for row in ranks]),
        Column("waiting ms", [ms(row.waiting_s) for row in ranks]),
        Column("tables", [str(row.tables) for row in ranks], need=5),
        Column("memory", [format_bytes(row.memory_bytes) for row in ranks], need=4),
        Column("look-ups", [str(row.lookups) for row in ranks], need=3),
    ]
    return table(columns, width, title="ranks")


def _name(operation: str, form: str) -> str:
    name = operation.replace("_", "-")
    return f"{name} {form.replace('_', ' ')}" if form else name


def _rate(bytes_per_s: float | None) -> str:
    return "unreachable" if bytes_per_s is None else format_rate(bytes_per_s, "bytes")
