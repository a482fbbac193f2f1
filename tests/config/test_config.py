"""Every setting's rule, and the way of settings to and from JSON, files and the command line."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gpt_jax.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    files,
    fix_schedule,
    from_dict,
    list_configs,
    load_config,
    override,
    to_dict,
)
from gpt_jax.config.fields import get_field, iter_fields, parse
from gpt_jax.errors import ConfigError, UserError

POSITIVE_INTS = [
    "model.n_layer",
    "model.n_head",
    "model.n_embd",
    "model.block_size",
    "model.n_kv_head",
    "model.mlp_width",
    "train.batch_size",
    "train.steps",
    "train.log_interval",
    "train.eval_interval",
    "train.eval_batches",
    "train.final_eval_tokens",
    "train.checkpoint_interval",
    "train.keep_checkpoints",
    "train.micro_batch",
    "train.loss_chunk",
    "train.max_skipped",
    "train.spike_window",
    "optim.schedule_steps",
    "sample.max_new_tokens",
    "sample.top_k",
    "sample.num_samples",
]
POSITIVE_FLOATS = [
    "optim.learning_rate",
    "optim.clip",
    "model.attention_scale",
    "model.norm_epsilon",
    "model.rotary_base",
    "train.max_minutes",
]
NOT_NEGATIVE_FLOATS = ["optim.weight_decay", "sample.temperature"]
SHARES = [
    "model.dropout",
    "model.embedding_dropout",
    "model.attention_dropout",
    "optim.beta1",
    "optim.beta2",
    "optim.muon_beta",
]
FLOATS = [
    *POSITIVE_FLOATS,
    *NOT_NEGATIVE_FLOATS,
    *SHARES,
    "data.train_fraction",
    "optim.floor",
    "sample.top_p",
    "train.spike",
]
MESH_SIZES = ["mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence"]
TEXTS = ["run_dir", "data.corpus"]
SWITCHES = [
    "model.bias",
    "model.qkv_bias",
    "model.head_bias",
    "model.tied",
    "model.qk_norm",
    "model.inverse_layer_scale",
    "model.residual_init_scale",
    "train.keep_best",
]
CHOICES = {
    "data.order": "random, epochs",
    "data.resident": "auto, device, host",
    "model.activation": "relu, gelu, gelu_exact, relu2, swiglu",
    "model.norm": "layer, rms",
    "model.positions": "learned, rotary",
    "model.dtype": "float32, bfloat16, auto",
    "model.remat": "none, full, dots",
    "model.attention": "auto, plain, blockwise, fused",
    "optim.optimizer": "adamw, muon",
    "optim.decay": "all, matrices",
    "sample.window": "exact, refill",
    "train.on_divergence": "stop, skip",
}


def refusal(name, value) -> str:
    with pytest.raises(ConfigError) as caught:
        override(Config(), {name: value})
    return str(caught.value)


# --- rules ----------------------------------------------------------------------------------------


def test_a_config_error_is_a_users_mistake():
    assert issubclass(ConfigError, UserError)


def test_every_setting_has_a_meaning_and_a_default_that_keeps_its_rule():
    names = [name for name, _, _ in iter_fields(Config)]
    assert len(names) == len(set(names))
    for _, _, field in iter_fields(Config):
        assert field.metadata["help"]
    assert Config() == from_dict({})


SEEDS = ("seed", "init_seed", "data_seed", "dropout_seed")


def test_every_number_is_covered_by_the_lists_of_this_test():
    numbers = {name for name, hint, _ in iter_fields(Config) if {int, float} & {hint, *_args(hint)}}
    assert numbers == {
        *POSITIVE_INTS, *FLOATS, *MESH_SIZES, *SEEDS, "model.vocab_size", "data.vocab_size",
        "optim.warmup_steps", "optim.decay_steps", "train.keep_interval", "at_step",
        "train.sample_tokens",
    }  # fmt: skip


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_floor_is_a_share(value):
    assert refusal("optim.floor", value) == f"optim.floor={value!r} must be a number in [0, 1]"
    assert (OptimConfig(floor=0).floor, OptimConfig(floor=1).floor) == (0, 1)


def test_lengths_of_a_schedule_are_whole_numbers():
    assert refusal("optim.warmup_steps", -1) == (
        "optim.warmup_steps=-1 must be a whole number of at least 0"
    )
    with pytest.raises(ConfigError, match=r"optim.decay_steps=0 must be .* at least 1"):
        OptimConfig(schedule="wsd", decay_steps=0)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_decay_steps_are_for_wsd(schedule):
    with pytest.raises(ConfigError) as caught:
        OptimConfig(schedule=schedule, decay_steps=5)
    assert str(caught.value) == (
        f"optim.decay_steps=5 is for optim.schedule=wsd, and this is {schedule}; set "
        "optim.decay_steps=none (optim.schedule_steps is where cosine ends)"
    )
    with pytest.raises(ConfigError, match="must be one of constant, cosine, wsd"):
        OptimConfig(schedule="linear")


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (
            {"schedule": "cosine", "warmup_steps": 8},
            "warmup_steps=8 must fit into the schedule's 8",
        ),
        (
            {"schedule": "cosine", "warmup_steps": 3, "schedule_steps": 3},
            "warmup_steps=3 must fit into the schedule's 3 steps; try fewer, or more train.steps",
        ),
        (
            {"schedule": "wsd", "warmup_steps": 5, "decay_steps": 4},
            "optim.warmup_steps=5 and optim.decay_steps=4 must fit into the schedule's 8 steps",
        ),
    ],
)
def test_a_schedule_fits_its_length(optim, message):
    with pytest.raises(ConfigError, match=message):
        Config(optim=OptimConfig(**optim), train=TrainConfig(steps=8))
    roomy = {**optim, "schedule_steps": 9}
    assert Config(optim=OptimConfig(**roomy), train=TrainConfig(steps=8)).train.steps == 8


@pytest.mark.parametrize(
    ("optim", "pinned"),
    [
        ({}, (None, None, math.inf)),
        ({"warmup_steps": 9}, (None, None, math.inf)),
        ({"schedule": "cosine", "warmup_steps": 7}, (500, None, 7)),
        ({"schedule": "cosine", "schedule_steps": 90}, (90, None, 0)),
        ({"schedule": "wsd"}, (500, 100, 400)),
        ({"schedule": "wsd", "schedule_steps": 3}, (3, 1, 2)),
        ({"schedule": "wsd", "decay_steps": 30}, (500, 30, 470)),
    ],
)
def test_a_schedule_is_as_long_as_training_unless_it_says_otherwise(optim, pinned):
    config = Config(optim=OptimConfig(**optim), train=TrainConfig(steps=500))
    found = fix_schedule(config).optim
    assert (found.schedule_steps, found.decay_steps, found.constant_steps) == pinned
    assert fix_schedule(dataclasses.replace(config, optim=found)).optim == found


def test_the_length_of_a_schedule_that_has_none_is_an_error():
    for schedule in ("cosine", "wsd"):
        with pytest.raises(ValueError, match=f"schedule={schedule} has no length; see fix_sche"):
            _ = OptimConfig(schedule=schedule).constant_steps


def test_checkpoints_for_good_are_among_those_that_are_made():
    assert override(Config(), {"train.keep_interval": 300}).train.keep_interval == 300
    assert refusal("train.keep_interval", 250) == (
        "train.keep_interval=250 must be a multiple of train.checkpoint_interval=100; try "
        "keep_interval=300"
    )


@pytest.mark.parametrize(("micro_batch", "advice"), [(5, 4), (64, 32), (31, 16)])
def test_a_micro_batch_divides_the_batch(micro_batch, advice):
    assert refusal("train.micro_batch", micro_batch) == (
        f"train.batch_size=32 must be divisible by train.micro_batch={micro_batch}; "
        f"try micro_batch={advice}"
    )
    assert TrainConfig(micro_batch=advice).micro_batch_size == advice
    assert TrainConfig().micro_batch_size == 32


def test_settings_saved_before_there_were_schedules_mean_what_they_did():
    optim = from_dict({"optim": {"learning_rate": 1e-3, "weight_decay": 0.01}}).optim
    assert (optim.optimizer, optim.schedule, optim.warmup_steps) == ("adamw", "constant", 0)
    assert (optim.decay, optim.clip) == ("all", None)


@pytest.mark.parametrize("value", [256, 0, -1])
def test_learned_tokens_are_at_least_the_bytes_and_one(value):
    message = f"data.vocab_size={value} must be a whole number of at least 257"
    assert refusal("data.vocab_size", value) == message
    assert DataConfig(tokenizer="bpe", vocab_size=257).vocab_size == 257


def test_a_learned_tokenizer_and_its_size_go_together():
    assert refusal("data.tokenizer", "bpe") == (
        "data.tokenizer=bpe needs data.vocab_size, the number of tokens to learn; try 1024"
    )
    for name in ("char", "gpt2", "cl100k_base", "o200k_base"):
        assert DataConfig(tokenizer=name).tokenizer == name
        with pytest.raises(ConfigError) as caught:
            DataConfig(tokenizer=name, vocab_size=300)
        assert str(caught.value) == (
            f"data.vocab_size=300 is for data.tokenizer=bpe, and this is {name}; set one of them: "
            "data.tokenizer=bpe or data.vocab_size=none"
        )
    assert refusal("data.tokenizer", "word") == (
        "data.tokenizer='word' must be one of char, bpe, gpt2, cl100k_base, o200k_base"
    )


@pytest.mark.parametrize(
    ("n_embd", "n_head", "advice"),
    [(100, 3, "99 or 102"), (2, 4, "4"), (127, 4, "124 or 128")],
)
def test_n_embd_must_be_divisible_by_n_head(n_embd, n_head, advice):
    with pytest.raises(ConfigError) as caught:
        ModelConfig(n_embd=n_embd, n_head=n_head)
    assert str(caught.value) == (
        f"model.n_embd={n_embd} must be divisible by model.n_head={n_head}; try n_embd={advice}"
    )
    for n in map(int, advice.split(" or ")):
        assert ModelConfig(n_embd=n, n_head=n_head).n_embd == n


@pytest.mark.parametrize("name", POSITIVE_INTS)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_at_least_one(name, value):
    assert refusal(name, value) == f"{name}={value} must be a whole number of at least 1"
    if name not in ("model.n_head", "model.n_embd"):
        assert get_field(override(Config(), {name: 1}), name) == 1


@pytest.mark.parametrize("name", POSITIVE_FLOATS)
@pytest.mark.parametrize("value", [0.0, -1e-3, math.nan, math.inf, -math.inf])
def test_rates_are_finite_and_above_zero(name, value):
    assert f"{name}={value!r} must be a finite number above 0" in refusal(name, value)


def test_attention_scale_has_advice():
    assert refusal("model.attention_scale", 0.0).endswith("; use none for the default")


@pytest.mark.parametrize("name", NOT_NEGATIVE_FLOATS)
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
def test_decay_and_temperature_are_finite_and_not_negative(name, value):
    assert refusal(name, value) == f"{name}={value!r} must be a finite number of at least 0"
    assert get_field(override(Config(), {name: 0}), name) == 0


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("value", [-0.01, 1, 1.0, 1.5, math.nan, math.inf])
def test_dropout_and_betas_are_in_zero_to_below_one(name, value):
    assert refusal(name, value) == f"{name}={value!r} must be a number in [0, 1)"
    assert get_field(override(Config(), {name: 0.0}), name) == 0


@pytest.mark.parametrize("value", [0, 0.0, 1, 1.0, -0.5, 2.0, math.nan, math.inf])
def test_train_fraction_is_strictly_inside_zero_and_one(value):
    expected = f"data.train_fraction={value!r} must be a number between 0 and 1, both excluded"
    assert refusal("data.train_fraction", value) == expected


@pytest.mark.parametrize("value", [0, 0.0, -0.1, 1.0001, math.nan, math.inf])
def test_top_p_is_above_zero_and_at_most_one(value):
    assert refusal("sample.top_p", value) == f"sample.top_p={value!r} must be a number in (0, 1]"
    assert SampleConfig(top_p=1.0).top_p == 1.0
    assert SampleConfig(top_p=None).top_p is None


@pytest.mark.parametrize("value", [-1, 2**32])
def test_a_seed_fits_32_bits(value):
    for name in SEEDS:
        assert refusal(name, value) == f"{name}={value} must be a whole number in [0, 2**32)"
    assert Config(seed=2**32 - 1).seed == 2**32 - 1


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["exactly", "", None, True, 1, [], {}])
def test_a_choice_is_one_of_those_there_are(name, value):
    assert refusal(name, value) == f"{name}={value!r} must be one of {CHOICES[name]}"
    for choice in CHOICES[name].split(", "):
        assert get_field(override(Config(), {name: choice, "model.dropout": 0.0}), name) == choice


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [None, 0, 1, "true", "", 1.0, [], {}])
def test_a_switch_is_true_or_false(name, value):
    assert refusal(name, value) == f"{name}={value!r} must be true or false"
    for switch in (True, False):
        assert get_field(override(Config(), {name: switch}), name) is switch


@pytest.mark.parametrize(
    ("n_kv_head", "n_head", "advice"), [(3, 4, 1), (6, 8, 2), (8, 4, 4), (2, 1, 1)]
)
def test_n_kv_head_must_divide_n_head(n_kv_head, n_head, advice):
    assert ModelConfig(n_head=n_head).kv_heads == n_head
    with pytest.raises(ConfigError) as caught:
        ModelConfig(n_kv_head=n_kv_head, n_head=n_head)
    assert str(caught.value) == (
        f"model.n_kv_head={n_kv_head} must divide model.n_head={n_head}; try n_kv_head={advice}"
    )
    assert ModelConfig(n_kv_head=advice, n_head=n_head).kv_heads == advice


def test_rotary_positions_need_an_even_head_size():
    with pytest.raises(ConfigError) as caught:
        ModelConfig(n_embd=20, n_head=4, positions="rotary")
    assert str(caught.value) == (
        "model.positions='rotary' needs an even head size, not n_embd=20 / n_head=4 = 5; "
        "try n_embd=24"
    )
    assert ModelConfig(n_embd=24, n_head=4, positions="rotary").head_size == 6


def test_a_model_saved_before_there_were_options_means_what_it_did():
    before = {"n_layer": 3, "n_head": 4, "n_embd": 128, "block_size": 64, "dropout": 0.2}
    model = from_dict({"model": {**before, "attention_scale": None, "vocab_size": 73}}).model
    options = dataclasses.asdict(model)
    assert {name: options[name] for name in options.keys() - before.keys()} == {
        "attention_scale": None,
        "activation": "relu",
        "norm": "layer",
        "bias": True,
        "qkv_bias": False,
        "head_bias": True,
        "tied": False,
        "positions": "learned",
        "qk_norm": False,
        "n_kv_head": None,
        "mlp_width": None,
        "attention_dropout": None,
        "norm_epsilon": 1e-5,
        "rotary_base": 10_000.0,
        "inverse_layer_scale": False,
        "embedding_dropout": 0.0,
        "residual_init_scale": False,
        "dtype": "float32",
        "remat": "none",
        "attention": "auto",
        "vocab_size": 73,
    }


@pytest.mark.parametrize("name", [*POSITIVE_INTS, "seed", "model.vocab_size"])
@pytest.mark.parametrize("value", [True, False, 2.0, "2", [2], {}, math.nan])
def test_a_whole_number_is_no_bool_float_or_text(name, value):
    assert refusal(name, value) == f"{name}={value!r} must be a whole number"


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [True, False, "0.5", [0.5], {}])
def test_a_number_is_no_bool_or_text(name, value):
    assert refusal(name, value) == f"{name}={value!r} must be a number"


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [True, 3, 0.5, None, ["oz"], b"oz"])
def test_a_text_is_nothing_else(name, value):
    assert refusal(name, value) == f"{name}={value!r} must be a text"


def test_none_is_for_optional_settings_only():
    optional = {name for name, hint, _ in iter_fields(Config) if type(None) in _args(hint)}
    assert optional == {
        *SEEDS[1:],
        "init_from",
        "branch_from",
        "at_step",
        "model.attention_scale",
        "model.n_kv_head",
        "data.fallback_corpus",
        "model.attention_dropout",
        "model.mlp_width",
        "data.vocab_size",
        "optim.schedule_steps",
        "optim.decay_steps",
        "optim.clip",
        "train.micro_batch",
        "train.loss_chunk",
        "train.final_eval_tokens",
        "train.max_minutes",
        "train.spike",
        "train.keep_interval",
        "sample.prompt",
        "sample.top_k",
        "sample.top_p",
    }
    for name in optional:
        assert get_field(override(Config(), {name: None}), name) is None
    assert refusal("train.steps", None) == "train.steps=None must be a whole number"


def _args(hint):
    return getattr(hint, "__args__", ())


@pytest.mark.parametrize(
    ("name", "way_out"),
    [("data.corpus", "python-manual"), ("run_dir", "runs/nano")],
)
def test_corpus_and_run_dir_are_not_empty(name, way_out):
    message = refusal(name, "")
    assert message.startswith(f"{name} is empty; give a ")
    assert way_out in message


@pytest.mark.parametrize("name", [*POSITIVE_FLOATS, *NOT_NEGATIVE_FLOATS])
def test_an_integer_beyond_every_float_is_refused(name):
    assert "must be a finite number" in refusal(name, 10**400)


@pytest.mark.parametrize("group", ["model", "data", "optim", "train", "sample"])
@pytest.mark.parametrize("value", [None, {}, "oz", 3])
def test_a_group_of_another_type_is_refused(group, value):
    with pytest.raises(ConfigError, match=rf"\b{group}\b"):
        Config(**{group: value})


def test_a_config_cannot_change_after_its_rules_were_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.dropout = 2.0


# --- chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "evaluate", "save", "chunk"),
    [(10, 50, 100, 10), (10, 25, 100, 5), (10, 50, 4, 2), (4, 100, 50, 2), (7, 5, 3, 1)],
)
def test_a_chunk_is_the_longest_that_ends_at_every_interval(log, evaluate, save, chunk):
    train = TrainConfig(log_interval=log, eval_interval=evaluate, checkpoint_interval=save)
    assert train.chunk_steps == chunk


# --- override -------------------------------------------------------------------------------------


@pytest.fixture
def nano():
    return Config(
        data=DataConfig(corpus="oz", fallback_corpus="python-manual"),
        sample=SampleConfig(prompt="The Great Wizard said "),
    )


def test_override_replaces_what_it_names_and_nothing_else(nano):
    changed = override(nano, {"model.n_layer": 5, "seed": 7})
    assert (changed.model.n_layer, changed.seed) == (5, 7)
    assert override(changed, {"model.n_layer": 3, "seed": 0}) == nano
    assert nano.model.n_layer == 3


def test_override_of_nothing_is_the_same_config(nano):
    assert override(nano, {}) == nano


def test_a_corpus_asked_for_by_name_is_never_swapped_for_another(nano):
    assert override(nano, {"data.corpus": "oz"}).data.fallback_corpus is None
    assert override(nano, {"data.corpus": "book.txt"}).data.fallback_corpus is None


def test_a_fallback_asked_for_with_the_corpus_stays(nano):
    asked = {"data.corpus": "oz", "data.fallback_corpus": "book.txt"}
    assert override(nano, asked).data.fallback_corpus == "book.txt"


def test_the_prompt_belongs_to_its_corpus(nano):
    assert override(nano, {"data.corpus": "book.txt"}).sample.prompt is None
    assert override(nano, {"data.corpus": "oz"}).sample.prompt == "The Great Wizard said "
    asked = {"data.corpus": "book.txt", "sample.prompt": "Call me "}
    assert override(nano, asked).sample.prompt == "Call me "


@pytest.mark.parametrize(
    ("name", "close"),
    [("model.n_layers", "model.n_layer"), ("train.step", "train.steps"), ("sed", "seed")],
)
def test_override_suggests_the_setting_that_was_meant(name, close):
    with pytest.raises(ConfigError) as caught:
        override(Config(), {name: 3})
    assert str(caught.value) == f"unknown setting {name!r}; did you mean {close}?"


@pytest.mark.parametrize("name", ["model", "model.", ".n_layer", "zzzzzzzzzzzzzz", ""])
def test_override_takes_settings_only(name):
    with pytest.raises(ConfigError, match=r"^unknown setting "):
        override(Config(), {name: 3})


def test_nothing_resembling_has_no_suggestion():
    with pytest.raises(ConfigError, match=r"^unknown setting 'zzzzzzzzzzzzzz'$"):
        override(Config(), {"zzzzzzzzzzzzzz": 3})


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_configs())
def test_every_named_config_loads_and_survives_json(name):
    config = load_config(name)
    assert isinstance(config, Config)
    assert config.run_dir == f"runs/{name}"
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_to_dict_nests_by_group():
    values = to_dict(Config())
    assert values["model"]["n_layer"] == 3
    assert values["sample"]["prompt"] is None
    groups = {"model", "data", "optim", "train", "mesh", "sample"}
    starts = {"init_from", "checkpoint", "branch_from", "at_step"}
    assert set(values) == {"run_dir", *SEEDS} | starts | groups


@pytest.mark.parametrize("name", MESH_SIZES)
def test_the_size_of_a_mesh_axis_is_at_least_1_or_minus_1(name):
    for value in (0, -2, 1.5):
        assert name in refusal(name, value)
    others = dict.fromkeys(MESH_SIZES, 1)
    for value in (-1, 1, 4):
        assert get_field(override(Config(), {**others, name: value}), name) == value


def test_what_json_leaves_out_keeps_its_default():
    assert from_dict({"model": {"n_layer": 2}}) == Config(model=ModelConfig(n_layer=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "unknown setting 'modle'; did you mean model?"),
        ({"model": {"n_layers": 3}}, "unknown setting 'model.n_layers'; did you mean n_layer?"),
        ({"model": None}, "model must be settings, not None"),
        ({"optim": [1]}, "optim must be settings, not [1]"),
        ([], "the config must be settings, not []"),
        (None, "the config must be settings, not None"),
        ("x" * 100, "the config must be settings, not '" + "x" * 59),
        ({3: 4}, "unknown setting '3'"),
    ],
)
def test_from_dict_names_what_is_wrong(values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(values)
    assert str(caught.value) == message


ARBITRARY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
        | st.dictionaries(st.sampled_from([*to_dict(Config())]), inner, max_size=3)
    ),
    max_leaves=12,
)
SOME_SETTING = st.one_of(
    [
        st.fixed_dictionaries({group: st.dictionaries(st.sampled_from(names), ARBITRARY)})
        for group, names in (
            (group, [*values])
            for group, values in to_dict(Config()).items()
            if isinstance(values, dict)
        )
    ]
)


@pytest.mark.slow
@given(ARBITRARY | SOME_SETTING)
@example({"optim": {"learning_rate": 10**400}})
@example({"sample": {"window": []}})
@hypothesis_settings(deadline=None, derandomize=True, max_examples=300)
def test_any_json_is_a_config_or_a_config_error(values):
    try:
        config = from_dict(values)
    except ConfigError:
        return
    assert from_dict(to_dict(config)) == config


# --- the command line's words ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("12", int, 12),
        ("-3", int, -3),
        ("3e-4", float, 3e-4),
        ("2", float, 2.0),
        ("none", int | None, None),
        ("None", float | None, None),
        ("NONE", str | None, None),
        ("7", int | None, 7),
        ("0.5", float | None, 0.5),
        ("nonesuch", str | None, "nonesuch"),
        ("none", str, "none"),
        ("", str, ""),
        ("true", bool, True),
        ("False", bool, False),
    ],
)
def test_parse_makes_the_settings_type(text, hint, value):
    parsed = parse(text, hint, "--x")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "hint", "message"),
    [
        ("many", int, "--x takes a whole number, not 'many'"),
        ("2.5", int, "--x takes a whole number, not '2.5'"),
        ("none", int, "--x takes a whole number, not 'none'"),
        ("", int | None, "--x takes a whole number, not ''"),
        ("0,5", float, "--x takes a number, not '0,5'"),
        ("fast", float | None, "--x takes a number, not 'fast'"),
        ("yes", bool, "--x takes true or false, not 'yes'"),
        ("", bool, "--x takes true or false, not ''"),
    ],
)
def test_parse_names_the_text_that_is_no_number(text, hint, message):
    with pytest.raises(ConfigError) as caught:
        parse(text, hint, "--x")
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["nan", "inf", "1e999"])
def test_a_number_that_is_not_finite_parses_and_breaks_the_rule(text):
    value = parse(text, float, "--optim.learning-rate")
    with pytest.raises(ConfigError, match=r"optim\.learning_rate=(nan|inf) must be a finite"):
        OptimConfig(learning_rate=value)


# --- config files ---------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """Writes a config file of the given lines and returns its path."""

    def write_file(*lines: str, name: str = "mine.py") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write_file


def load_error(name) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


IMPORT = "from gpt_jax.config import Config"


def test_a_path_loads_as_text_or_path(write):
    path = write(IMPORT, "def get_config():", "    return Config(seed=5)")
    assert load_config(path).seed == load_config(str(path)).seed == 5
    assert not (path.parent / "__pycache__").exists()


def test_a_relative_path_loads(write, monkeypatch):
    path = write(IMPORT, "def get_config():", "    return Config(seed=6)")
    monkeypatch.chdir(path.parent)
    assert load_config("mine.py").seed == 6
    assert load_config("./mine.py").seed == 6


def test_a_config_file_may_define_dataclasses_of_its_own(write):
    path = write(
        "from __future__ import annotations",
        "import dataclasses",
        IMPORT,
        "@dataclasses.dataclass",
        "class Size:",
        "    seed: int = 8",
        "def get_config():",
        "    return Config(seed=Size().seed)",
    )
    assert load_config(path).seed == 8


def test_an_unknown_config_lists_those_there_are():
    message = load_error("nnao")
    assert message.startswith("unknown config 'nnao'; did you mean nano?; there are base, ")
    assert "nano_original" in message
    assert message.endswith("or give the path of a file")


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "absent.py", tmp_path):
        what = f"config file {path} does not exist; give another, or a name from --help"
        assert load_error(path) == what


def test_a_file_that_is_not_python_is_refused(write):
    path = write("seed: 3", name="mine.yaml")
    assert load_error(path) == f"config file {path} must be a Python file (.py)"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["1 / 0"], "fails: ZeroDivisionError: division by zero"),
        (["import no_such_module_at_all"], "fails: ModuleNotFoundError: No module named 'no_such"),
        (["def get_config(:"], "fails: SyntaxError: "),
        (["raise ValueError('two\\nlines')"], "fails: ValueError: two lines"),
        (["def get_config(): raise KeyError('x')"], "fails: KeyError: 'x'"),
        (["import sys", "sys.exit(0)"], "fails: SystemExit: 0"),
        (["seed = 3"], "no attribute 'get_config'"),
    ],
)
def test_a_file_that_fails_is_named_with_the_reason(write, lines, expected):
    path = write(*lines)
    message = load_error(path)
    assert message.startswith(f"config file {path} fails: ")
    assert expected in message


def test_a_file_that_breaks_a_rule_is_named_with_the_rule(write):
    path = write(IMPORT, "def get_config(): return Config(seed=-1)")
    assert load_error(path) == (f"config file {path}: seed=-1 must be a whole number in [0, 2**32)")


@pytest.mark.parametrize("value", ["None", "{'seed': 3}", "Config"])
def test_a_file_that_returns_something_else_is_refused(write, value):
    path = write(IMPORT, f"def get_config(): return {value}")
    message = load_error(path)
    assert message.startswith(f"config file {path}: get_config() must return a gpt_jax Config, not")


def test_the_root_is_a_checkouts_or_an_installed_package(tmp_path):
    module = "gpt_jax/config/files.py"
    for folder in ("checkout/configs", "checkout/gpt_jax", "site/gpt_jax/configs", "lone/gpt_jax"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "site" / "configs").mkdir()  # another package's
    checkout, site = tmp_path / "checkout", tmp_path / "site"
    assert files.find_root(str(checkout / module)) == checkout
    assert files.checkout_dir(str(checkout / module)) == checkout
    assert files.find_root(str(site / module)) == site / "gpt_jax"
    assert files.checkout_dir(str(site / module)) is None
    assert files.find_root(str(tmp_path / "lone" / module)) is None
    assert files.checkout_dir(str(tmp_path / "lone" / module)) is None
    assert files.checkout_dir() == ROOT


def test_a_package_without_its_configs_says_so(monkeypatch):
    monkeypatch.setattr(files, "find_root", lambda: None)
    with pytest.raises(ConfigError, match="configs/ is missing beside gpt_jax; install"):
        load_config("nano")


@pytest.fixture
def folder_of_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "config_dir", lambda: tmp_path)
    return tmp_path


def test_list_configs_reads_the_first_line_and_runs_nothing(folder_of_configs):
    (folder_of_configs / "b.py").write_text('"""Second.\n\nMore."""\nraise SystemExit("ran")\n')
    (folder_of_configs / "a.py").write_text("raise SystemExit('ran')\n")
    (folder_of_configs / "_hidden.py").write_text('"""Not shown."""\n')
    (folder_of_configs / "notes.txt").write_text("no config\n")
    assert list_configs() == {"a": "", "b": "Second."}
    assert list(list_configs()) == ["a", "b"]


@pytest.mark.parametrize("content", [b"def get_config(:\n", b"\xff\xfe\n", b'"""a\0b"""\n'])
def test_a_broken_file_does_not_hide_the_other_configs(folder_of_configs, content):
    (folder_of_configs / "broken.py").write_bytes(content)
    (folder_of_configs / "sound.py").write_text('"""Sound."""\n')
    listed = list_configs()
    assert listed["sound"] == "Sound."
    assert "broken" in listed


def test_the_repositorys_configs_each_have_a_line():
    listed = list_configs()
    assert {"nano", "nano_original"} <= set(listed)
    assert all(listed.values())


def test_the_originals_attention_is_scaled_by_the_width_of_the_embedding():
    nano, original = load_config("nano"), load_config("nano_original")
    assert nano.model.attention_scale is None
    assert original.model.attention_scale == pytest.approx(1 / math.sqrt(128))
    assert dataclasses.replace(original.model, attention_scale=None) == nano.model
    assert (original.data, original.optim, original.train) == (nano.data, nano.optim, nano.train)


def test_a_file_that_names_no_folder_gets_one_of_its_own(tmp_path):
    source = "from gpt_jax.config import Config\ndef get_config():\n    return Config({})\n"
    (tmp_path / "mine.py").write_text(source.format(""))
    assert load_config(tmp_path / "mine.py").run_dir == "runs/mine"
    (tmp_path / "mine.py").write_text(source.format("run_dir='there'"))
    assert load_config(tmp_path / "mine.py").run_dir == "there"
    assert load_config("nano").run_dir == "runs/nano"


def test_a_setting_misspelt_in_a_config_file_gets_a_suggestion(write):
    path = write(
        "from gpt_jax.config import Config, ModelConfig",
        "def get_config(): return Config(model=ModelConfig(n_layers=3))",
    )
    assert load_error(path).endswith(
        "unexpected keyword argument 'n_layers'; did you mean n_layer?"
    )


def test_a_config_file_without_its_ending_is_recognised(write, tmp_path, monkeypatch):
    write(IMPORT, "def get_config(): return Config(seed=6)")
    monkeypatch.chdir(tmp_path)
    assert load_error("mine") == "unknown config 'mine'; for the file, give mine.py"


NUMPY = [
    ("seed", np.int64(3)), ("train.steps", np.int32(4)), ("optim.learning_rate", np.float32(1e-3)),
    ("model.dropout", np.float64(0.1)), ("model.tied", np.bool_(True)), ("seed", np.array(5)),
    ("data.corpus", np.str_("oz")), ("sample.top_p", np.float16(0.5)), ("seed", np.uint8(7)),
    ("train.micro_batch", np.int64(8)), ("mesh.data", np.int64(-1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), NUMPY)
def test_settings_may_be_numpys_scalars(name, value):
    config = override(load_config("nano"), {name: value})
    found = get_field(config, name)
    assert found == value.item()
    assert type(found) in (int, float, bool, str)
    assert config == override(load_config("nano"), {name: value.item()})
    json.dumps(to_dict(config))


def test_what_breaks_a_rule_breaks_it_as_numpys_scalar_too():
    for name, value in (
        ("train.steps", np.int64(0)), ("seed", np.float64(1.0)), ("model.tied", np.int64(1)),
        ("train.steps", np.array([3])), ("train.steps", np.bool_(True)),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{name}=.* must be"):
            override(load_config("nano"), {name: value})


@pytest.mark.parametrize("name", ["model.n_layer", "model.block_size", "train.steps"])
def test_a_whole_number_that_no_computer_counts_to_is_refused(name):
    for value in (2**63, -(2**63), 10**400, 10**5000):
        bits = value.bit_length()
        assert refusal(name, value) == f"{name} is too large: a whole number of {bits} bits"
    assert "model.vocab_size is too large" in refusal("model.vocab_size", 2**31)  # an array's size
    assert override(Config(), {"train.final_eval_tokens": 2**40}).train.final_eval_tokens == 2**40


def test_a_whole_number_in_the_place_of_a_fraction():
    """jax would take one for an integer of 32 bits."""
    for value in (2**31, 2**40, 10**300):
        scale = override(Config(), {"model.attention_scale": value}).model.attention_scale
        assert (type(scale), scale) == (float, float(value))
    assert type(override(Config(), {"optim.clip": 1}).optim.clip) is int
    assert "must be a finite number" in refusal("model.norm_epsilon", 10**5000)


@pytest.mark.parametrize("name", ["model.norm", "model.bias", "train.steps", "model.dropout"])
def test_a_long_value_is_shown_in_part(name):
    assert len(refusal(name, "x" * 10**6)) < 200


def test_a_branch_has_a_parent_and_a_step_and_something_to_train():
    branch = {"branch_from": "runs/a", "at_step": 400}
    assert override(Config(), branch).at_step == 400
    for values, message in (
        ({"branch_from": "runs/a"}, "branch_from is given without at_step, its step to branch"),
        ({"at_step": 3}, "at_step is given without branch_from, the run to branch from"),
        ({**branch, "init_from": "gpt2"}, "init_from=gpt2 starts from parameters alone; give one"),
        ({**branch, "at_step": 500}, "at_step=500 leaves none of train.steps=500 to train"),
    ):
        with pytest.raises(ConfigError, match=message):
            override(Config(), values)
