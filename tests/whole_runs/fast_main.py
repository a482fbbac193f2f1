"""main.py in a process of its own, as in the test processes: `compiling_fast`, `no_pictures`."""

import runpy
import sys
from pathlib import Path

MAIN = Path(__file__).parents[2] / "main.py"

if __name__ == "__main__":
    sys.path.insert(0, str(MAIN.parent))
    from gpt_jax import devices
    from gpt_jax.run import plots

    devices.compiler_options = lambda backend, *, library_products: {}
    plots.plot_losses = lambda rows, run_dir, title: "none"
    sys.argv[0] = str(MAIN)
    runpy.run_path(sys.argv[0], run_name="__main__")
