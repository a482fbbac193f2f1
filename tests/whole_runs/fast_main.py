"""main.py in a process of its own, as in the test processes: `compiling_fast`, `no_pictures`."""

import json
import os
import runpy
import sys
from pathlib import Path

MAIN = Path(__file__).parents[2] / "main.py"


def watch_devices(folder):
    """At the end, a file for this process has the most bytes that a device had, see `watch`."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from device_bytes import watch

    most = {}

    def see(name, n_bytes):
        most[name] = max(n_bytes, most.get(name, 0))
        (folder / f"{os.getpid()}.json").write_text(json.dumps(most))

    watch(setattr, see)


if __name__ == "__main__":
    sys.path.insert(0, str(MAIN.parent))
    from gpt_jax import devices
    from gpt_jax.run import plots

    devices.compiler_options = lambda backend, *, library_products: {}
    plots.plot_losses = lambda rows, run_dir, title: "none"
    if folder := os.environ.get("GPT_JAX_TEST_DEVICE_BYTES"):
        watch_devices(Path(folder))
    sys.argv[0] = str(MAIN)
    runpy.run_path(sys.argv[0], run_name="__main__")
