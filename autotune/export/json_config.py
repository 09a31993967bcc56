"""A tuned config as JSON: the same keys as its YAML."""

from __future__ import annotations

import json

from autotune.config.tuned import TunedConfig


def to_json_config(config: TunedConfig) -> str:
    """The whole config, keys in the order of the YAML file."""
    return json.dumps(config.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"
