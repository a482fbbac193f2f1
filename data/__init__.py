"""Recipes that turn sources of text into token shards: see README.md and `prepare.py`.

They use the package `gpt_jax`, which never uses them. Prepared corpora are stored here too.
"""
