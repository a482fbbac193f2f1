"""Which settings a sweep can't vary and a trial can't change, and why. Never imports jax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt_jax.config import Config
from gpt_jax.config.fields import iter_fields
from gpt_jax.errors import ConfigError, suggest

# Settings that can't vary -> why not. A name that ends in a dot is a group.
FIXED = {
    "run_dir": "a sweep's runs lie in the folder --out",
    "seed": "use --seeds",
    "init_seed": "use --seeds, which all seeds follow that are not set",
    "data_seed": "use --seeds, which all seeds follow that are not set",
    "dropout_seed": "use --seeds, which all seeds follow that are not set",
    "init_from": "it decides the model's settings",
    "checkpoint": "it belongs to init_from",
    "data.corpus": "losses on other texts can't be compared",
    "data.fallback_corpus": "losses on other texts can't be compared",
    "data.train_fraction": "losses on other validation splits can't be compared",
    "data.tokenizer": "losses of other tokens can't be compared",
    "data.vocab_size": "losses of other tokens can't be compared",
    "data.resident": "it changes no result",
    "train.final_eval_tokens": "losses on other validation splits can't be compared",
    "train.deterministic": "it is set for a whole process",
    "train.max_minutes": "runs of other lengths by the clock can't be repeated",
    "train.log_interval": "it changes no result",
    "train.eval_interval": "it changes no result",
    "train.eval_batches": "it changes no result",
    "train.eval_fixed": "it changes no result",
    "train.sample_tokens": "it changes no result",
    "train.checkpoint_interval": "it changes no result",
    "train.keep_checkpoints": "it changes no result",
    "train.keep_interval": "it changes no result",
    "train.keep_best": "it changes no result",
    "mesh.": "it changes rounding only",
    "sample.": "it changes no result",
}
# What a trial says of them otherwise.
EACH_PAIR = "each pair of a trial has its own seed, from --seed on"
OF_TRIAL = {
    "run_dir": "a trial's runs lie in the folder --out",
    "seed": EACH_PAIR,
    "init_seed": EACH_PAIR,
    "data_seed": EACH_PAIR,
    "dropout_seed": EACH_PAIR,
}


def settings() -> dict[str, Any]:
    """Returns {setting: its type} of all that a user can set."""
    return {n: hint for n, hint, field in iter_fields(Config) if not field.metadata["internal"]}


def why_fixed(name: str, reasons: Mapping[str, str] = FIXED) -> str:
    """Returns why a setting can't vary; '' where it can."""
    return reasons.get(name) or reasons.get(name.partition(".")[0] + ".") or ""


def variable_settings() -> list[str]:
    """Returns the settings that can vary."""
    return [name for name in settings() if not why_fixed(name)]


def changed_hint(name: str, option: str = "change", begun: bool = False) -> Any:
    """Returns the type of a setting that a trial can change.

    Args:
      name: of the setting, dotted.
      option: what the error is to name.
      begun: the trial is there: an earlier release may have allowed what is not tried any more.

    Raises:
      ConfigError: there is no such setting, or it can't be tried.
    """
    hints = settings()
    if name not in hints:
        close = suggest(name, variable_settings())
        raise ConfigError(f"{option}: unknown setting {name!r}{close}")
    why = why_fixed(name, {**FIXED, **OF_TRIAL})
    if why and not begun:
        raise ConfigError(f"{option}: {name} can't be tried, because {why}")
    return hints[name]
