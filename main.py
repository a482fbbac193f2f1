"""The command line in a checkout: `python main.py --config nano` trains; see `--help`."""

from gpt_jax.cli.main import main, run

__all__ = ["main"]  # for tests and scripts: main(["--config", "nano"]) returns the exit status

if __name__ == "__main__":
    run()
