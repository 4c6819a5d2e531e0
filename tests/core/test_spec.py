import dataclasses

import pytest

from twingpt.core.errors import UsageError
from twingpt.core.init import initial_weights
from twingpt.core.params import flops_per_token, parameter_count, parameter_table
from twingpt.core.presets import PRESETS
from twingpt.core.spec import GPTSpec


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_spec(name: str) -> None:
    GPTSpec(vocab_size=16_000, **PRESETS[name].model)


def test_seed_is_what_the_user_wrote() -> None:
    spec = GPTSpec(vocab_size=16_000, **PRESETS["seed"].model)
    assert (spec.n_layer, spec.n_head, spec.n_embd, spec.block_size, spec.dropout) == (6, 6, 384, 256, 0.1)
    assert (spec.activation, spec.tie_embeddings, spec.bias, spec.norm_eps) == ("gelu", False, True, 1e-5)


def test_gpt2_has_the_published_number_of_parameters() -> None:
    assert parameter_count(GPTSpec(vocab_size=50_257, **PRESETS["gpt2"].model)) == 124_439_808


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_head": 5}, "n_embd"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"n_layer": 0}, "n_layer"),
        ({"n_layer": "6"}, "n_layer"),
        ({"n_layer": True}, "n_layer"),
        ({"activation": "relu"}, "activation"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"layers": 6}, "layers"),
        ({"n_kv_head": 4}, "n_kv_head"),
        ({"head_size": 33, "position": "rope"}, "head_size"),
        ({"n_hidden": -1}, "n_hidden"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"norm": "batchnorm"}, "norm"),
        ({"qk_norm": 1}, "qk_norm"),
    ],
)
def test_an_impossible_setting_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        GPTSpec.from_dict({"vocab_size": 100, **change})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UsageError, match="vocab_size is missing"):
        GPTSpec.from_dict({"n_layer": 2})


def test_dict_round_trip(spec: GPTSpec) -> None:
    assert GPTSpec.from_dict(spec.to_dict()) == spec


def test_biases_and_norms_do_not_decay(spec: GPTSpec) -> None:
    for name, param in parameter_table(spec).items():
        assert param.decay == (len(param.shape) == 2), name


def test_a_gated_mlp_has_the_weights_of_a_plain_one() -> None:
    plain = GPTSpec(vocab_size=100, n_embd=384)
    gated = dataclasses.replace(plain, activation="swiglu")
    assert (plain.hidden, gated.hidden, dataclasses.replace(gated, n_hidden=100).hidden) == (1536, 1024, 100)
    assert {"blocks.0.mlp.gate.weight", "blocks.0.mlp.gate.bias"} <= set(parameter_table(gated))


def test_fewer_key_heads_and_wider_ones() -> None:
    spec = GPTSpec(vocab_size=100, n_embd=96, n_head=6, n_kv_head=2, head_size=20, position="rope", qk_norm=True)
    table = parameter_table(spec)
    assert table["blocks.0.attn.qkv.weight"].shape == ((6 + 2 + 2) * 20, 96)
    assert table["blocks.0.attn.proj.weight"].shape == (96, 120)
    assert table["blocks.0.attn.k_norm.weight"].shape == (20,)
    assert "pos_emb.weight" not in table


def test_rmsnorm_has_no_bias(spec: GPTSpec) -> None:
    table = parameter_table(dataclasses.replace(spec, norm="rmsnorm"))
    assert "blocks.0.ln1.bias" not in table
    assert "blocks.0.mlp.fc.bias" in table


def test_zero_starts_the_residual_branches_at_nothing(spec: GPTSpec) -> None:
    weights = initial_weights(dataclasses.replace(spec, residual_init="zero"), seed=0)
    assert not weights["blocks.0.attn.proj.weight"].any() and not weights["blocks.1.mlp.proj.weight"].any()
    assert weights["blocks.0.mlp.fc.weight"].any()


def test_a_tied_head_is_no_parameter(spec: GPTSpec) -> None:
    tied = dataclasses.replace(spec, tie_embeddings=True)
    assert set(parameter_table(spec)) - set(parameter_table(tied)) == {"head.weight"}
    # The head's matrix product is paid for all the same.
    assert flops_per_token(tied) == flops_per_token(spec)


def test_weights_do_not_depend_on_what_else_is_there(spec: GPTSpec) -> None:
    shallow = initial_weights(dataclasses.replace(spec, n_layer=1), seed=3)
    deep = initial_weights(spec, seed=3)
    assert all((shallow[name] == deep[name]).all() for name in shallow)
    other = initial_weights(spec, seed=4)
    assert not (other["tok_emb.weight"] == deep["tok_emb.weight"]).any()


def test_initial_weights_have_the_spread_asked_for(spec: GPTSpec) -> None:
    scaled = dataclasses.replace(spec, residual_init="scaled", vocab_size=5000)
    weights = initial_weights(scaled, seed=0)
    assert weights["tok_emb.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert weights["blocks.0.mlp.proj.weight"].std() == pytest.approx(0.01, rel=0.05)
    assert (weights["ln_f.weight"] == 1).all()
    assert (weights["ln_f.bias"] == 0).all()
