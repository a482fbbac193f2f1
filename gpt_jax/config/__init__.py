"""The settings of a run: what each means, its default, its rule."""

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
    from_dict,
    override,
    pin_schedule,
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
    "from_dict",
    "list_configs",
    "load_config",
    "override",
    "pin_schedule",
    "to_dict",
]
