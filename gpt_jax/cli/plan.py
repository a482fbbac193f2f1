"""`python main.py plan`: the memory and time a run would need; trains nothing."""

from __future__ import annotations

import dataclasses
import json
import os

from gpt_jax import devices
from gpt_jax.cli.options import add_settings
from gpt_jax.cli.parsers import add_config, add_debug, named_config, verb_parser
from gpt_jax.config import Config, fix_schedule, load_config, override
from gpt_jax.terminal import say


def command(argv: list[str]) -> int:
    config = load_config(named_config("plan", argv))
    parser = verb_parser(
        "plan",
        "[--config NAME] [--topology X] [...]",
        ".\n\nThe step is compiled, but nothing is allocated or trained, so the model may be "
        "larger than this machine's memory. The exit status is 1 if it does not fit.",
    )
    add_config(parser)
    parser.add_argument("--topology", metavar="X",
                        help="what to compile for: a TPU slice, such as v5e:4x4, v5p:2x2x2 or "
                        "v6e:8x8, or NVIDIA GPUs, such as h100:1, h100:8, a100-40gb:8 or t4:1; "
                        "needs requirements-tpu.txt or requirements-gpu-plan.txt, but no TPU and "
                        "no GPU (default: this machine)")  # fmt: skip
    parser.add_argument("--sampling", action="store_true",
                        help="also compile the decoder: its memory, and on NVIDIA GPUs a bound on "
                        "the time of a token, of 1 and of --sample.num-samples "
                        "streams")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    add_debug(parser)
    add_settings(parser, config)
    values = vars(parser.parse(argv))
    topology, sampling, as_json = (values.pop(name) for name in ("topology", "sampling", "json"))
    del values["config"], values["debug"]
    config = override(config, values)

    if topology is None:
        devices.request_cpu_devices(config.train.micro_batch_size, at_least=config.mesh.n_requested)
    else:
        os.environ |= devices.COMPILE_ENVIRONMENT
    if config.train.deterministic:
        devices.request_determinism()
    from gpt_jax import numerics

    with numerics.fixed():
        return _show(config, topology, sampling, as_json)


def _show(config: Config, topology: str | None, sampling: bool, as_json: bool) -> int:
    from gpt_jax.analysis import plan, topologies

    topologies.check_can_plan(topology)
    if not config.model.vocab_size:
        config = _with_vocabulary(config)
    config = fix_schedule(config)
    described = None if topology is None else topologies.topology_devices(topology)
    found = plan.make_plan(config, described, sampling=sampling)
    fitting = None if found.fits or as_json else plan.find_fitting_config(config, described)
    if as_json:
        print(json.dumps(found.record(), indent=1))
    else:
        print(found)
        if fitting is not None:
            options, smaller = fitting
            print(f"\nit fits with {options}: {smaller.memory / plan.GIB:.2f} GiB {found.where}")
        elif not found.fits:
            print("\nnothing was found that fits: use more devices, or a smaller model or batch")
    return 0 if found.fits else 1


def _with_vocabulary(config: Config) -> Config:
    """Returns the config with the vocabulary size of its corpus."""
    from gpt_jax.input_pipeline.corpus import load_corpus

    corpus = load_corpus(config.data.corpus, config.data.fallback_corpus)
    for note in corpus.notes:
        say(f"note: {note}")
    n = corpus.choose_tokenizer(config.data).vocab_size
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=n))
