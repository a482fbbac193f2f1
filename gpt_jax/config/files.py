"""Config files: the named ones in `configs/`, and any Python file with a `get_config()`."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path

from gpt_jax.config.fields import iter_fields
from gpt_jax.config.run_config import DEFAULT_RUN_DIR, Config
from gpt_jax.errors import ConfigError, UserError, suggest

OLD_MODULE = "gpt_jax.config_files"  # where load_config was once imported from


def find_root(module: str = __file__) -> Path | None:
    """Returns the nearest folder above a module that has `configs/`, if there is one.

    That is the root of a checkout, or the package itself where it is installed.
    """
    return next((path for path in Path(module).parents if (path / "configs").is_dir()), None)


def checkout_dir(module: str = __file__) -> Path | None:
    """Returns the root of the checkout that a module of the package is in; None if installed."""
    root = find_root(module)
    return root if root and (root / "gpt_jax").is_dir() else None


def config_dir() -> Path:
    """Returns the folder of the named configs.

    Raises:
      ConfigError: it is missing.
    """
    root = find_root()
    if root is None:
        raise ConfigError("the folder configs/ is missing beside gpt_jax; install gpt_jax again")
    return root / "configs"


def list_configs() -> dict[str, str]:
    """Returns {name: first line of the file's docstring} without running any of the files."""
    found = {}
    for path in sorted(config_dir().glob("[a-z]*.py")):
        try:
            docstring = ast.get_docstring(ast.parse(path.read_bytes())) or ""
        except (OSError, SyntaxError, ValueError) as error:
            docstring = f"(can't be read: {error})"
        found[path.stem] = docstring.partition("\n")[0]
    return found


def load_config(name: str | os.PathLike[str]) -> Config:
    """Returns the config of a name in `configs/`, or of the path of a Python file.

    The file is code and is run: it must define `get_config() -> Config`.

    Raises:
      ConfigError: there is no such config, or the file fails or returns something else.
    """
    name = os.fspath(name)
    path = Path(name)
    if os.sep not in name and path.suffix != ".py":
        path = config_dir() / f"{name}.py"
        if not path.is_file():
            names = list(list_configs())
            if os.path.isfile(f"{name}.py"):
                raise ConfigError(f"unknown config {name!r}; for the file, give {name}.py")
            raise ConfigError(
                f"unknown config {name!r}{suggest(name, names)}; there are {', '.join(names)}, "
                "or give the path of a file"
            )
    if not path.is_file():
        raise ConfigError(f"config file {name} does not exist; give another, or a name from --help")
    spec = importlib.util.spec_from_file_location(f"gpt_jax_config:{path}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {name} must be a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.modules[spec.name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except UserError as error:
        raise ConfigError(f"config file {path}: {error}") from error
    except (Exception, SystemExit) as error:
        if getattr(error, "name", "") == OLD_MODULE:  # a copy of an older config
            raise ConfigError(
                f"config file {path}: {OLD_MODULE} is now gpt_jax.config; write: "
                "from gpt_jax.config import load_config"
            ) from error
        detail = " ".join(str(error).split())
        if unknown := re.match(r"(\w+Config\.__init__.*? unexpected .*?'(\w+)')", detail):
            names = {part for setting, _, _ in iter_fields(Config) for part in setting.split(".")}
            detail = unknown[1] + suggest(unknown[2], names)  # from 3.13 on Python has its own
        raise ConfigError(f"config file {path} fails: {type(error).__name__}: {detail}") from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
    if not isinstance(config, Config):
        raise ConfigError(
            f"config file {path}: get_config() must return a gpt_jax Config, not {config!r:.60}"
        )
    if config.run_dir == DEFAULT_RUN_DIR:
        config = dataclasses.replace(config, run_dir=f"runs/{path.stem}")
    return config
