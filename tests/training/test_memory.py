"""Memory: the estimate beside what XLA plans, and the line that ends a run too large."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from gpt_jax.config import Config, ModelConfig, TrainConfig, fix_schedule, load_config, override
from gpt_jax.config.fields import iter_fields, parse
from gpt_jax.config.known_settings import KNOWN
from gpt_jax.devices import available_memory, largest_divisor
from gpt_jax.errors import UserError
from gpt_jax.training import memory
from gpt_jax.training.memory import check_memory, check_program, estimate_memory, memory_limit
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.resume import resume_config
from gpt_jax.training.state import state_shapes
from gpt_jax.training.step import make_train_step
from gpt_jax.training.trainer import train

SMALL = Config(
    model=ModelConfig(n_layer=2, n_head=4, n_embd=64, block_size=64, dropout=0.0, vocab_size=300),
    train=TrainConfig(batch_size=16, eval_batches=1),
)


def planned(config: Config) -> int:
    """Bytes that XLA plans for a step: arguments, results, all between."""
    model, train = config.model, config.train
    step = make_train_step(model, make_optimizer(config.optim), train)
    shape = (train.micro_batch_size, model.block_size + 1)
    if train.micro_batch is not None:
        shape = (train.batch_size // train.micro_batch, *shape)
    batch, key = jax.ShapeDtypeStruct(shape, jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    state = state_shapes(model, config.optim)
    plan = jax.jit(step, donate_argnums=0).lower(state, batch, key).compile().memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "train"),
    [
        ({}, {}),
        ({"remat": "full"}, {}),
        ({"activation": "gelu", "n_layer": 8}, {}),
        ({"activation": "gelu", "dtype": "bfloat16", "n_layer": 8}, {}),
        ({"activation": "gelu", "n_layer": 8, "remat": "dots"}, {}),
        ({"activation": "gelu", "dtype": "bfloat16", "n_layer": 8, "remat": "full"}, {}),
        ({"activation": "swiglu", "norm": "rms", "dtype": "bfloat16", "n_layer": 8}, {}),
        ({"attention": "blockwise", "block_size": 1024}, {"batch_size": 1}),
        ({"vocab_size": 20_000, "n_layer": 1}, {"batch_size": 4, "loss_chunk": 32}),
        ({"activation": "swiglu", "norm": "rms", "n_kv_head": 1}, {"micro_batch": 4}),
    ],
)
def test_the_estimate_is_between_half_and_all_of_what_xla_plans(model, train):
    """It counts what must be there; XLA adds what is there for a moment, in its own order."""
    config = dataclasses.replace(
        SMALL,
        model=dataclasses.replace(SMALL.model, **model),
        train=dataclasses.replace(SMALL.train, **train),
    )
    estimate, plan = estimate_memory(config, (1, 1, 1, 1), "cpu").total, planned(config)
    assert plan / 2 < estimate <= plan, estimate / plan


def test_a_setting_that_the_estimate_does_not_know_makes_it_smaller_never_larger(monkeypatch):
    """As if grouped queries and recomputing products were new."""
    new = [{"n_kv_head": 1}, {"remat": "dots"}, {"n_kv_head": 1, "n_layer": 8}]
    configs = [
        dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, **values))
        for values in new
    ]
    known = [estimate_memory(config, (1, 1, 1, 1), "cpu") for config in configs]
    monkeypatch.delitem(KNOWN, "n_kv_head")
    monkeypatch.setitem(KNOWN, "remat", ("none", "full"))
    for config, before in zip(configs, known, strict=True):
        after = estimate_memory(config, (1, 1, 1, 1), "cpu")
        assert after.state == before.state
        assert 0 < after.activations < before.activations


def test_the_estimate_by_hand():
    """base: state and gradients are float32; on a GPU their sum alone. Activations are bfloat16."""
    config = with_vocabulary("base", 50257)
    P, L, D, tokens = 124_439_808, 12, 768, 32 * 1024
    need = estimate_memory(config, (1, 1, 1, 1), "cuda 9.0")
    counters = 3 * 4  # the state's, Adam's, the schedule's
    assert need.state == 4 * (3 * P + P) + counters
    again = 2 * (3 * D + D + 4 * D + D + 3 * D + 4 * D)
    kept = 2 * (3 * D + 4 * D + 2 * D + 4 * D)
    logits = (4 + 2) * tokens * 50257
    assert need.activations == L * tokens * kept + logits
    on_tpu = estimate_memory(config, (1, 1, 1, 1), "tpu")
    assert on_tpu.state == 4 * (3 * P + 2 * P) + counters
    kept_by_norms_and_gelu = 2 * 2 * 4 * D + 3 * 2 * 4 * D
    whole_logits = 2 * 4 * tokens * 50257
    assert on_tpu.activations == L * tokens * (again + kept_by_norms_and_gelu) + whole_logits
    for mesh in ((8, 1, 1, 1), (2, 1, 1, 4)):
        needed = L * tokens // 8 * kept + logits // 8
        assert estimate_memory(config, mesh, "cuda 9.0").activations == needed
    full = dataclasses.replace(config, model=dataclasses.replace(config.model, remat="full"))
    needed = L * tokens * 2 * D + max(tokens * again, logits)
    assert estimate_memory(full, (1, 1, 1, 1), "cuda 9.0").activations == needed


@pytest.mark.parametrize("name", ["base", "medium", "large", "xl", "base_8k"])
def test_a_config_fits_the_gpu_of_80_gb_that_it_names(name):
    """In the 75% that jax takes of it. Not run; so it leaves room beyond the estimate.

    Of a block of base jax keeps 84 bytes for each entry of its input where the estimate has 72
    (norms 28, attention 8, gelu 48): a sixth more; and some is alive for a moment.
    """
    need = estimate_memory(with_vocabulary(name, 50257), (1, 1, 1, 1), "cuda 9.0")
    assert need.state + 1.4 * need.activations < 0.75 * 80e9


def with_vocabulary(name: str, vocab_size: int) -> Config:
    config = load_config(name)
    model = dataclasses.replace(config.model, vocab_size=vocab_size)
    return fix_schedule(dataclasses.replace(config, model=model))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "limit", "message"),
    [
        (
            "base",
            {},
            20,
            "training needs at least 55.2 GiB of memory, 4.6 for the model and its optimizer and "
            "50.5 for what a batch of 32 at once computes, and this machine has 20.0; try "
            "--train.micro-batch 4",
        ),
        ("base", {}, 5, "this machine has 5.0; try --train.micro-batch 1"),
        ("large", {}, 15.5, "try --train.micro-batch 1 --model.remat full"),
        ("base", {}, 2, "this machine has 2.0; it takes a smaller model or a larger machine"),
        (
            "nano",
            {"batch_size": 10**8},
            4,
            "at once computes, and this machine has 4.0; try --train.batch-size 512",
        ),
    ],
)
def test_a_run_too_large_for_the_machine_is_refused_in_one_line(
    monkeypatch, name, change, limit, message
):
    monkeypatch.setattr(memory, "memory_limit", lambda device: limit * 2**30)
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 2)
    config = with_vocabulary(name, 73 if name == "nano" else 50257)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **change))
    with pytest.raises(UserError) as caught:
        check_memory(config)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


HINTS = {name: hint for name, hint, _ in iter_fields(Config)}


def advised(message: str) -> dict[str, object]:
    """Returns the settings that a refusal advises, as the command line takes them."""
    words = message.partition("; try ")[2].split()
    names = [word.removeprefix("--").replace("-", "_") for word in words[::2]]
    return {n: parse(text, HINTS[n], n) for n, text in zip(names, words[1::2], strict=True)}


@pytest.mark.parametrize(
    ("name", "values", "gib", "has_room"),
    [
        ("base", {}, 40, True),
        ("base", {}, 20, True),
        ("base", {}, 8, True),
        ("base", {}, 5, True),
        ("base", {}, 2.5, False),
        ("medium", {}, 15, True),
        ("large", {}, 15.5, True),
        ("large", {}, 12.2, False),
        ("large", {}, 40, True),
        ("xl", {}, 60, True),
        ("base_8k", {}, 20, True),
        ("base_8k", {"train.loss_chunk": None, "train.eval_batches": 50}, 10, True),
        ("nano", {"train.batch_size": 10**8}, 4, True),
        ("nano", {"train.batch_size": 10**8, "train.micro_batch": 10**7}, 4, True),
    ],
)
def test_what_the_refusal_advises_is_accepted(monkeypatch, name, values, gib, has_room):
    """With room for twice the estimate's activations, where there is a way that leaves it."""
    limit = gib * 2**30
    monkeypatch.setattr(memory, "memory_limit", lambda device: limit)
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 2)
    config = override(with_vocabulary(name, 73 if name == "nano" else 50257), values)
    with pytest.raises(UserError) as caught:
        check_memory(config)
    changes = advised(str(caught.value))
    assert changes
    smaller = override(config, changes)
    check_memory(smaller)
    n = largest_divisor(smaller.train.micro_batch_size, 2)
    need = estimate_memory(smaller, (n, 1, 1, 1), "cpu")
    assert (n * (need.state + 2 * need.activations) <= limit) == has_room


@pytest.mark.parametrize(
    ("gib", "changes"),
    [
        (20, {"model.remat": "full", "train.loss_chunk": 4096}),
        (40, {"model.remat": "full"}),
        (4, {}),
    ],
)
def test_the_advice_for_a_run_that_resumes_is_accepted_too(monkeypatch, gib, changes):
    """Its batch and its dtype are settled, and here the masks of its micro-batches."""
    monkeypatch.setattr(memory, "memory_limit", lambda device: gib * 2**30)
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 2)
    old = {"train.loss_chunk": None, "train.dropout_masks": "micro_batch"}
    saved = override(with_vocabulary("base", 50257), old)
    with pytest.raises(UserError) as caught:
        check_memory(saved, resumes=True)
    found = advised(str(caught.value))
    assert found == changes
    if changes:
        config = override(saved, changes)
        check_memory(config, resumes=True)
        assert resume_config(config, saved, {}, done=100) == config
    else:
        assert str(caught.value).endswith("it takes a smaller model or a larger machine")


def test_a_run_that_resumes_may_have_smaller_micro_batches(monkeypatch):
    monkeypatch.setattr(memory, "memory_limit", lambda device: 6 * 2**30)
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 2)
    saved = with_vocabulary("base", 50257)
    with pytest.raises(UserError) as caught:
        check_memory(saved, resumes=True)
    changes = advised(str(caught.value))
    assert changes["train.micro_batch"] < saved.train.micro_batch_size
    assert changes.keys() <= {"train.micro_batch", "model.remat", "train.loss_chunk"}
    config = override(saved, changes)
    check_memory(config, resumes=True)
    assert resume_config(config, saved, {}, done=100) == config


def test_a_device_that_does_not_say_its_memory_is_not_judged(monkeypatch):
    monkeypatch.setattr(memory, "memory_limit", lambda device: None)
    check_memory(with_vocabulary("xl", 50257))


def test_a_program_that_xla_plans_larger_than_the_memory_left_does_not_start(monkeypatch):
    """A product of 8 MiB whose factors are made in between, 8 MiB each."""

    def product(x):
        a = jnp.sin(x + jnp.arange(2**21, dtype=jnp.float32)).reshape(1024, 2048)
        return a @ a[::-1].T @ jnp.cos(a)

    program = jax.jit(product).lower(jnp.float32(1)).compile()
    plan = program.memory_analysis()
    need = plan.temp_size_in_bytes + plan.output_size_in_bytes + plan.argument_size_in_bytes
    assert plan.output_size_in_bytes == 2**23
    assert plan.temp_size_in_bytes >= 2**23
    check_program(program, need, "it")
    check_program(program, None, "it")
    with pytest.raises(
        UserError, match=r"^it would take 0\.0 GiB of memory.*; try --model.remat full, "
    ):
        check_program(program, need - 1, "it")


@pytest.mark.slow
def test_training_asks_for_xlas_own_plan_before_its_first_step(monkeypatch, tmp_path):
    """The estimate lets the run pass, and what XLA plans does not."""
    config = override(load_config("nano"), {"run_dir": str(tmp_path / "r"), "train.steps": 20})
    corpus = tmp_path / "text.txt"
    corpus.write_text("It was a dark and stormy night. " * 100, encoding="utf-8")
    config = override(config, {"data.corpus": str(corpus), "train.eval_batches": 1})
    monkeypatch.setattr("gpt_jax.training.run_setup.check_memory", lambda config, resumes: None)
    monkeypatch.setattr("gpt_jax.training.compiled_steps.memory_limit", lambda device: 2**20)
    with pytest.raises(UserError, match=r"the program '(initialise|evaluate|train)' would take"):
        train(config, quiet=True)


class Device:
    platform = "gpu"

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_the_limit_is_the_devices_own_or_the_machines(tmp_path):
    assert memory_limit(Device({"bytes_limit": 123})) == 123
    assert memory_limit(Device({})) is None
    assert memory_limit(Device(None)) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:     7 kB\n")
    assert memory_limit(jax.devices()[0], tmp_path) == 7 * 1024


@pytest.mark.parametrize(
    ("limit_file", "usage_file", "cached"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
@pytest.mark.parametrize(
    ("text", "expected", "left"),
    [("5000\n", 5000, 4000), ("99999\n", 7168, 7168), ("max\n", 7168, 7168), ("800\n", 800, 0)],
)
def test_what_a_container_has_left_counts(
    tmp_path, limit_file, usage_file, cached, text, expected, left
):
    """Of 1,500 bytes in use, 500 are files that can be read again."""
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemAvailable:     7 kB\n")
    assert available_memory(tmp_path) == 7168
    limit = tmp_path / "sys" / "fs" / "cgroup" / limit_file
    limit.parent.mkdir(parents=True)
    limit.write_text(text)
    assert available_memory(tmp_path) == expected
    limit.with_name(usage_file).write_text("1500\n")
    limit.with_name("memory.stat").write_text(f"active_file 3\n{cached} 500\nfile 503\n")
    assert available_memory(tmp_path) == left


def test_a_config_that_knows_its_vocabulary_is_checked_before_its_corpus_is_looked_for(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("gpt_jax.training.memory.available_memory", lambda root: 2**30)
    config = override(load_config("base"), {"run_dir": str(tmp_path / "run")})
    with pytest.raises(UserError, match=r"^training needs at least .* this machine has 1\.0; "):
        train(config)
    assert not list(tmp_path.iterdir())
