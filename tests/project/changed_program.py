"""Checks of a program to which every change of docs/change-one-thing.md was applied.

Run by test_change_one_thing.py, in the changed copy; prints {name of a check: its failure or ""}.
"""

import dataclasses
import functools
import json
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt_jax
from gpt_jax.analysis.plan import make_plan
from gpt_jax.config import ModelConfig, OptimConfig, TrainConfig, override
from gpt_jax.errors import ConfigError
from gpt_jax.inference import decoding, evaluation
from gpt_jax.model import forward, init_cache
from gpt_jax.model.attention import attend, choose_attention
from gpt_jax.model.loss import batch_losses, loss_fn
from gpt_jax.run import plots
from gpt_jax.run.load import export, load_run
from gpt_jax.training import compiled_steps
from gpt_jax.training.memory import estimate_memory
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_step

TINY = ModelConfig(
    n_layer=1, n_head=4, n_kv_head=2, n_embd=16, block_size=8, dropout=0.0, vocab_size=11
)
MODELS = {
    "activation": {"activation": "mish"},
    "parallel_block": {"parallel_block": True},
    "positions": {"positions": "alibi"},
}
TOKENS_BT = jax.random.randint(jax.random.key(1), (4, 9), 0, 11)
IGNORED = int(TOKENS_BT[0, 1])
compiled = jax.jit(forward, static_argnums=0, static_argnames="last_only")


def changed(name: str) -> ModelConfig:
    return dataclasses.replace(TINY, **MODELS.get(name, {}))


@functools.cache
def init(model: ModelConfig, optim: OptimConfig = OptimConfig()):  # noqa: B008
    """The state before the first step; compiled, as one operation at a time takes seconds."""
    return jax.jit(lambda key: init_state(model, make_optimizer(optim), key))(jax.random.key(0))


def losses(model=TINY, optim=OptimConfig(), train=TrainConfig()) -> list[float]:  # noqa: B008
    """The losses of four steps."""
    state = init(model, optim)
    step = jax.jit(make_train_step(model, make_optimizer(optim), train))
    found = []
    for i in range(4):
        state, metrics = step(state, TOKENS_BT, jax.random.key(i))
        found.append(float(metrics["loss"]))
    return found


def check_each_change_trains_and_makes_a_difference(folder: Path) -> None:
    base = losses()
    assert base[-1] < base[0]
    changes = {name: losses(changed(name)) for name in MODELS}
    changes["optimizer"] = losses(optim=OptimConfig(optimizer="lion"))
    changes["mask"] = losses(train=TrainConfig(ignore_token=IGNORED))
    for name, found in changes.items():
        assert found[-1] < found[0], (name, found)
        assert abs(found[-1] - base[-1]) > 1e-5, (name, found, base)


def check_ways_to_the_logits_agree(folder: Path) -> None:
    """The full forward pass, through the cache in two chunks, and the last position alone."""
    for name in ("parallel_block", "positions"):
        model = changed(name)
        params = jax.tree.map(lambda x: 5 * x, init(model).params)
        tokens_BT = TOKENS_BT[:, :8]
        full_BTV = compiled(model, params, tokens_BT)
        cache, chunks = init_cache(model, len(tokens_BT)), []
        for start, end in ((0, 4), (4, 8)):
            chunk_BTV, cache = compiled(model, params, tokens_BT[:, start:end], cache=cache)
            chunks.append(chunk_BTV)
        np.testing.assert_allclose(jnp.concatenate(chunks, axis=1), full_BTV, atol=2e-5)
        last_B1V = compiled(model, params, tokens_BT, last_only=True)
        np.testing.assert_allclose(last_B1V, full_BTV[:, -1:], atol=2e-5)


def check_the_parallel_block_has_one_norm(folder: Path) -> None:
    blocks = jax.eval_shape(lambda: init(changed("parallel_block")).params)["blocks"]
    assert set(blocks) == {"attn", "mlp", "norm_1"}


def check_alibi_is_attention_with_linear_biases(folder: Path) -> None:
    """Against NumPy: 4 query heads, 2 key/value heads, slopes 1/4, 1/16, 1/64, 1/256."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, heads, 5, 8)) for heads in (4, 2, 2))
    arrays = [jnp.asarray(x, jnp.float32) for x in (q, k, v)]
    ours = attend("plain", *arrays, 0, lambda w: w, 1.0, 4)
    for b, h, t in np.ndindex(2, 4, 5):
        scores = k[b, h // 2, : t + 1] @ q[b, h, t] - 4.0 ** -(h + 1) * (t - np.arange(t + 1))
        weights = np.exp(scores - scores.max())
        expected = weights @ v[b, h // 2, : t + 1] / weights.sum()
        np.testing.assert_allclose(ours[b, h, t], expected, atol=1e-5)


def check_kernels_are_not_taken(folder: Path) -> None:
    fits = ModelConfig(n_head=2, n_embd=128, block_size=2048, dropout=0.0, dtype="bfloat16")
    for asked in ("auto", "fused", "blockwise"):
        for backend in ("cuda 9.0", "tpu"):
            model = dataclasses.replace(fits, attention=asked)
            assert choose_attention(model, backend)[0] == asked.replace("auto", "fused")
            for name in ("parallel_block", "positions"):
                found, reason = choose_attention(
                    dataclasses.replace(model, **MODELS[name]), backend
                )
                assert (found, f"model.{name}=" in reason) == ("plain", True), (found, reason)


def check_lion_takes_steps_of_one_length(folder: Path) -> None:
    """The first update is the learning rate times the sign of the gradient."""
    optim = OptimConfig(optimizer="lion", learning_rate=0.01, weight_decay=0.0)
    optimizer = make_optimizer(optim)
    params, grads = {"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([0.3, -5.0])}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.01, 0.01], rtol=1e-6)


def check_the_mask_is_a_mean_over_the_other_tokens(folder: Path) -> None:
    params = init(TINY).params
    losses_BT = np.asarray(jax.jit(batch_losses, static_argnums=0)(TINY, params, TOKENS_BT))
    counts = np.asarray(TOKENS_BT[:, 1:]) != IGNORED
    assert 0 < counts.sum() < counts.size
    masked = TrainConfig(ignore_token=IGNORED)
    found = jax.jit(lambda p: loss_fn(TINY, p, TOKENS_BT, None, masked))(params)
    np.testing.assert_allclose(found, losses_BT[counts].mean(), rtol=1e-5)
    with pytest.raises(ConfigError, match=r"set train\.micro_batch=none"):
        TrainConfig(ignore_token=3, micro_batch=8)


def check_the_estimate_of_memory_is_a_lower_bound(folder: Path) -> None:
    """With more than six layers too; a plan, from the compiled step, counts what it knows."""
    both = MODELS["parallel_block"] | MODELS["positions"]
    for options, known in ((MODELS["activation"], True), (both, False)):
        model = dataclasses.replace(TINY, **options, n_layer=7)
        config = gpt_jax.Config(model=model, train=TrainConfig(batch_size=8, eval_batches=1))
        plan = make_plan(config)
        estimate = estimate_memory(config, (1, 1, 1, 1), "cpu")
        assert estimate.state < estimate.total <= plan.memory, options
        assert (plan.flops is None) != known


def check_all_of_them_through_a_run(folder: Path) -> None:
    """Trained, resumed, sampled from; not exported, and not resumed with another value."""
    (folder / "text.txt").write_text("It was a dark and stormy night. " * 60)
    values = {"run_dir": str(folder / "run"), "data.corpus": str(folder / "text.txt")}
    values |= {"model.n_layer": 1, "model.n_embd": 16, "model.block_size": 8, "train.steps": 4}
    values |= {"train.batch_size": 4, "train.log_interval": 2, "train.eval_interval": 4}
    values |= {"train.eval_batches": 1, "train.checkpoint_interval": 2}
    values |= {f"model.{name}": value for part in MODELS.values() for name, value in part.items()}
    values |= {"optim.optimizer": "lion", "train.ignore_token": 0, "sample.max_new_tokens": 4}
    config = override(gpt_jax.Config(), values)
    gpt_jax.train(config, quiet=True)
    run = load_run(folder / "run")
    assert run.config.model.parallel_block
    assert len(gpt_jax.generate(run, "It", max_new_tokens=4)) == 6
    new = override(config, {"run_dir": str(folder / "new"), "model.dropout": 0.0})
    with pytest.raises(ConfigError, match="blockwise can't be: only plain attention is known to "):
        gpt_jax.train(override(new, {"model.attention": "blockwise"}), quiet=True)
    for name, value in {"model.parallel_block": False, "model.positions": "rotary"}.items():
        with pytest.raises(ConfigError, match=f"{name} is "):
            gpt_jax.train(override(config, {name: value, "train.steps": 6}), quiet=True)
    with pytest.raises(ConfigError) as caught:
        export(run, folder / "gpt2")
    assert all(f"model.{name}=" in str(caught.value) for name in MODELS)
    assert not (folder / "gpt2").exists()


def main() -> None:
    for module in (compiled_steps, decoding, evaluation):  # as conftest.py does, for speed
        module.compiler_options = lambda backend, *, library_products: {}
    plots.plot_losses = lambda rows, run_dir, title: "none"
    found = {}
    for name, check in globals().copy().items():
        if name.startswith("check_"):
            try:
                check(Path(sys.argv[1]))
                found[name] = ""
            except Exception:
                found[name] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
