"""The settings of runs that start from another run or a GPT-2 folder: `--init-from`.

What that source decides is taken out of what was given before devices are asked for, and compared
with the source once jax may be imported.
"""

from __future__ import annotations

from typing import Any

from gpt_jax.config import Config, override
from gpt_jax.config.fields import get_field, iter_fields


def without_source_settings(
    config: Config, values: dict[str, Any]
) -> tuple[Config, dict[str, Any]]:
    """Returns the config with `values` in it, and those that init_from decides, which are not.

    There are none without init_from. Those of a config file with init_from are among them.

    Raises:
      ConfigError: a value breaks a rule.
    """
    if values.get("init_from", config.init_from) is None:
        return override(config, values), {}
    of_source = [name for name, _, _ in iter_fields(Config) if name.startswith("model.")]
    of_source += ["data.tokenizer", "data.vocab_size"]
    given = {}
    if config.init_from is not None:
        given = {
            k: get_field(config, k)
            for k in of_source
            if get_field(config, k) != get_field(Config(), k)
        }
    given |= {k: values[k] for k in of_source if k in values}
    return override(config, {k: v for k, v in values.items() if k not in of_source}), given


def with_source_settings(config: Config, given: dict[str, Any]) -> Config:
    """Returns the config with the settings of its init_from; without one as it is.

    Raises:
      UserError: the source can't be read, or `given` contradicts it.
    """
    if config.init_from is None:
        return config
    from gpt_jax.training.init_from import start_from

    return start_from(config, given)
