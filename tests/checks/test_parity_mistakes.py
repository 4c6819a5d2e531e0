"""Sixteen mistakes in an update, each put into either engine: the ladder notices, at the rung that says what is wrong.

Put into both engines at once, they are noticed too: by NumPy.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from twingpt.backends.mlx import step as mlx_step
from twingpt.backends.torch_mps import step as torch_step
from twingpt.checks import parity
from twingpt.core.backend import Backend, EngineConfig, create_backend
from twingpt.core.params import Param, parameter_table
from twingpt.core.spec import GPTSpec

SPEC = GPTSpec(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.0)

ENGINES = ("mps", "mlx")

Patch = Callable[[pytest.MonkeyPatch], None]


def _in_mlx(name: str, change: Callable[[Any], Callable[..., Any]]) -> Patch:
    """One of the functions of an update in MLX, changed."""
    return lambda monkeypatch: monkeypatch.setattr(mlx_step, name, change(getattr(mlx_step, name)))


def _in_torch(owner: str, method: str, change: Callable[[Any], Callable[..., Any]]) -> Patch:
    """A method of one of the optimizers in PyTorch, changed."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        kind = getattr(torch_step, owner)
        monkeypatch.setattr(kind, method, change(getattr(kind, method)))

    return patch


def _count_not_kept(adamw: Any) -> Callable[..., Any]:
    def mistaken(weights: Any, moments: Any, *rest: Any) -> Any:
        new_weights, new = adamw(weights, moments, *rest)
        new.count = moments.count
        return new_weights, new

    return mistaken


def _moments_exchanged(adamw: Any) -> Callable[..., Any]:
    def mistaken(*arguments: Any) -> Any:
        new_weights, new = adamw(*arguments)
        new.m, new.v = new.v, new.m
        return new_weights, new

    return mistaken


def _momentum_not_stored(muon: Any) -> Callable[..., Any]:
    def mistaken(weights: Any, momentum: Any, *rest: Any) -> Any:
        return muon(weights, momentum, *rest)[0], momentum

    return mistaken


def _everything_decays(adamw: Any) -> Callable[..., Any]:
    def mistaken(weights: Any, moments: Any, grads: Any, lr: Any, table: Any, *rest: Any) -> Any:
        table = {name: dataclasses.replace(param, decay=True) for name, param in table.items()}
        return adamw(weights, moments, grads, lr, table, *rest)

    return mistaken


def _whole(param: Param) -> Param:
    return dataclasses.replace(param, parts=(param.shape[0],) if param.parts else ())


def _one_matrix_of_all_rows(muon: Any) -> Callable[..., Any]:
    def mistaken(weights: Any, momentum: Any, grads: Any, lr: Any, table: Any, *rest: Any) -> Any:
        return muon(weights, momentum, grads, lr, {name: _whole(param) for name, param in table.items()}, *rest)

    return mistaken


def _uncorrected(moment: str) -> Callable[[Any], Callable[..., Any]]:
    """Bias correction of one moment left out: its beta to the power of infinity is 0."""

    class Endless(float):
        def __pow__(self, _: Any) -> Any:  # type: ignore[override]
            return 0.0

    def change(adamw: Any) -> Callable[..., Any]:
        def mistaken(*arguments: Any) -> Any:
            *rest, config, each = arguments
            values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
            values[moment] = Endless(values[moment])
            return adamw(*rest, _Settings(values), each)

        return mistaken

    return change


class _Settings:
    """As an EngineConfig, whose own check would not take a number of another type."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


def _muon_count_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def arrays(self: Any) -> list[Any]:
        return [self.m, self.v, self.count, self.momentum, self.muon_count * 0]

    monkeypatch.setattr(mlx_step.Moments, "arrays", arrays)


def _around_torch_adamw(before: Callable[[Any, int], None], after: Callable[[Any], None] = lambda adamw: None) -> Patch:
    """PyTorch's AdamW is fused: what it is given, or what it leaves behind, is changed instead.

    before: gets the optimizer and the number of the update.
    """

    def change(init: Any) -> Callable[..., Any]:
        def mistaken(self: Any, *arguments: Any) -> None:
            init(self, *arguments)
            adamw, step = self.adamw, self.adamw.step

            def changed() -> None:
                usual = [dict(group) for group in adamw.param_groups]
                before(adamw, int(next(iter(adamw.state.values()))["step"]) + 1)
                step()
                for group, settings in zip(adamw.param_groups, usual, strict=True):
                    group.update(settings)
                after(adamw)

            adamw.step = changed

        return mistaken

    return _in_torch("Optimizer", "__init__", change)


def _nothing(*_: Any) -> None:
    pass


def _torch_m_uncorrected(adamw: Any, count: int) -> None:
    """The whole step is multiplied by the correction that is left out, but not the weight decay in it."""
    for group in adamw.param_groups:
        correction = 1.0 - group["betas"][0] ** count
        group["lr"] *= correction
        group["weight_decay"] /= correction


def _torch_v_uncorrected(adamw: Any, count: int) -> None:
    """sqrt(v) + eps, made of what PyTorch computes: sqrt(v) / root + eps."""
    for group in adamw.param_groups:
        root = (1.0 - group["betas"][1] ** count) ** 0.5
        group["lr"] /= root
        group["eps"] /= root
        group["weight_decay"] *= root


def _torch_everything_decays(adamw: Any, _: int) -> None:
    highest = max(group["weight_decay"] for group in adamw.param_groups)
    for group in adamw.param_groups:
        group["weight_decay"] = highest


def _torch_count_not_kept(adamw: Any) -> None:
    for kept in adamw.state.values():
        kept["step"] -= 1


def _torch_moments_exchanged(adamw: Any) -> None:
    for kept in adamw.state.values():
        kept["exp_avg"], kept["exp_avg_sq"] = kept["exp_avg_sq"], kept["exp_avg"]


def _torch_momentum_not_stored(step: Any) -> Callable[..., Any]:
    def mistaken(self: Any, *arguments: Any) -> None:
        before = {name: momentum.clone() for name, momentum in self.momentum.items()}
        step(self, *arguments)
        self.momentum = before

    return mistaken


def _torch_muon_count_not_kept(step: Any) -> Callable[..., Any]:
    def mistaken(self: Any, *arguments: Any) -> None:
        step(self, *arguments)
        self.count.zero_()

    return mistaken


def _torch_one_matrix_of_all_rows(init: Any) -> Callable[..., Any]:
    def mistaken(self: Any, parameters: Any, table: Any, config: Any) -> None:
        init(self, parameters, {name: _whole(param) for name, param in table.items()}, config)

    return mistaken


def _tokens_ignored(engine: Any) -> None:
    """The gradient's mean is taken over the counted targets at hand, whatever the caller says."""
    train_step = engine.train_step
    engine.train_step = lambda inputs, targets, lr, step, tokens=None: train_step(inputs, targets, lr, step)


@dataclass(frozen=True)
class Mistake:
    """caught_by: parts of the name of a rung that must fail. config: an engine's settings in place of those given.

    mlx, mps: what is changed in an engine's own code, where settings do not make the mistake.
    """

    caught_by: str
    config: dict[str, Any] = field(default_factory=dict)
    mlx: Patch = _nothing
    mps: Patch = _nothing
    tamper: Callable[[Any], None] = _nothing


MISTAKES = {
    "both betas 0": Mistake("one update, AdamW, m", {"beta1": 0.0, "beta2": 0.0}),
    "beta1 0.5": Mistake("one update, AdamW, m", {"beta1": 0.5}),
    "no bias correction of v": Mistake(
        "one update, AdamW, weights",
        mlx=_in_mlx("_adamw", _uncorrected("beta2")),
        mps=_around_torch_adamw(_torch_v_uncorrected),
    ),
    "the count not kept": Mistake(
        "one update, AdamW, AdamW's count",
        mlx=_in_mlx("_adamw", _count_not_kept),
        mps=_around_torch_adamw(_nothing, _torch_count_not_kept),
    ),
    "m and v exchanged": Mistake(
        "one update, AdamW, v",
        mlx=_in_mlx("_adamw", _moments_exchanged),
        mps=_around_torch_adamw(_nothing, _torch_moments_exchanged),
    ),
    "Muon's momentum 0": Mistake("five updates, Muon, momentum", {"muon_momentum": 0.0}),
    "Muon's momentum not stored": Mistake(
        "one update, Muon, momentum",
        mlx=_in_mlx("_muon", _momentum_not_stored),
        mps=_in_torch("Muon", "step", _torch_momentum_not_stored),
    ),
    "Muon's count not kept": Mistake(
        "one update, Muon, Muon's count",
        mlx=_muon_count_not_kept,
        mps=_in_torch("Muon", "step", _torch_muon_count_not_kept),
    ),
    "another weight decay": Mistake("one update, AdamW, weights", {"weight_decay": 0.4}),
    "norms and biases decay": Mistake(
        "one update, AdamW, weights",
        mlx=_in_mlx("_adamw", _everything_decays),
        mps=_around_torch_adamw(_torch_everything_decays),
    ),
    "no clipping": Mistake("one update, AdamW, m", {"grad_clip": 0.0}),
    "another eps": Mistake("one update, AdamW, weights", {"eps": 1e-2}),
    "tokens ignored": Mistake("one update, AdamW, gradient norm", tamper=_tokens_ignored),
    "no bias correction of m": Mistake(
        "one update, AdamW, weights",
        mlx=_in_mlx("_adamw", _uncorrected("beta1")),
        mps=_around_torch_adamw(_torch_m_uncorrected),
    ),
    "Muon with AdamW's learning rate": Mistake("one update, Muon, matrices", {"muon_lr_scale": 1.0}),
    "queries, keys and values as one": Mistake(
        "one update, Muon, matrices",
        mlx=_in_mlx("_muon", _one_matrix_of_all_rows),
        mps=_in_torch("Muon", "__init__", _torch_one_matrix_of_all_rows),
    ),
}


def put_in(mistake: Mistake, monkeypatch: pytest.MonkeyPatch, *wrong: str) -> None:
    """wrong: the engines that make the mistake."""

    def create(name: str, spec: GPTSpec, config: EngineConfig) -> Backend:
        if name not in wrong:
            return create_backend(name, spec, config)
        engine = create_backend(name, spec, dataclasses.replace(config, **mistake.config))
        mistake.tamper(engine)
        return engine

    for engine in wrong:
        getattr(mistake, engine)(monkeypatch)
    monkeypatch.setattr(parity, "create_backend", create)


def failing(spec: GPTSpec = SPEC) -> set[str]:
    return {rung.name for rung in parity.climb("x", spec, parity.perturbed(spec), "cpu") if not rung.passed}


def test_without_a_mistake_nothing_fails() -> None:
    assert failing() == set()


@pytest.mark.parametrize("wrong", ENGINES)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_one_engine_is_caught(name: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(MISTAKES[name], monkeypatch, wrong)
    names = failing()
    assert MISTAKES[name].caught_by in names
    # NumPy says which engine it is.
    assert f"{MISTAKES[name].caught_by}, {wrong} and NumPy" in names
    (right,) = set(ENGINES) - {wrong}
    assert not any(f"{right} and NumPy" in other for other in names)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_of_both_engines_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in(MISTAKES[name], monkeypatch, *ENGINES)
    names = failing()
    # Engine held against engine shows nothing where both are wrong alike.
    assert MISTAKES[name].caught_by not in names
    assert {f"{MISTAKES[name].caught_by}, {engine} and NumPy" for engine in ENGINES} <= names


def test_a_tensor_without_a_gradient_divides_nothing_by_zero() -> None:
    """Where the blocks' outputs are multiplied by zeros, nothing in them has a gradient."""
    weights = parity.perturbed(SPEC)
    for name in parameter_table(SPEC):
        if name.endswith("proj.weight"):
            weights[f"model/{name}"] = np.zeros_like(weights[f"model/{name}"])
    assert [rung for rung in parity.climb("x", SPEC, weights, "cpu") if not rung.passed] == []


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ENGINES)
@pytest.mark.parametrize("name", MISTAKES)
def test_the_command_fails(
    name: str, wrong: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from twingpt.cli import main

    put_in(MISTAKES[name], monkeypatch, wrong)
    monkeypatch.setattr(parity, "SPECS", {"seed style": parity.SPECS["seed style"]})
    monkeypatch.setattr("sys.argv", ["twingpt", "parity", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "comparisons differ; the first: seed style" in capsys.readouterr().out
