"""Tuned configs with other entries in their record."""

from autotune.config.tuned import TunedConfig


def recorded_with(config: TunedConfig, **changes: object) -> TunedConfig:
    """The config with `changes` in its record."""
    assert config.record is not None
    return config.model_copy(update={"record": config.record.model_copy(update=changes)})
