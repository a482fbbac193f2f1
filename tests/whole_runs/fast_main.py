"""main.py in a process of its own, compiled as the test processes compile (`compiling_fast`)."""

import runpy
import sys
from pathlib import Path

MAIN = Path(__file__).parents[2] / "main.py"

if __name__ == "__main__":
    sys.path.insert(0, str(MAIN.parent))
    from gpt_jax import devices

    devices.compiler_options = lambda backend, *, library_products: {}
    sys.argv[0] = str(MAIN)
    runpy.run_path(sys.argv[0], run_name="__main__")
