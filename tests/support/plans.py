"""A plan in one call."""

from __future__ import annotations

from typing import Any

from autotune.planning.planner import Plan, Planner


def plan(*arguments: Any, **options: Any) -> Plan:
    return Planner(*arguments, **options).plan()
