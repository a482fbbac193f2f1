"""The settings of a run: declarations, rules, and config files."""

from gpt_jax.config.files import list_configs, load_config
from gpt_jax.config.run_config import (
    DEFAULT_RUN_DIR,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    fix_schedule,
    from_dict,
    override,
    to_dict,
)

__all__ = [
    "DEFAULT_RUN_DIR",
    "Config",
    "DataConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "SampleConfig",
    "TrainConfig",
    "fix_schedule",
    "from_dict",
    "list_configs",
    "load_config",
    "override",
    "to_dict",
]
