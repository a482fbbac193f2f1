"""`python -m gpt_jax`: the command line of the installed package."""

from gpt_jax.cli.main import run

if __name__ == "__main__":
    run()
