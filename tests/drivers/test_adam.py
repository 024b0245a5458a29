from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.drivers import AdamConfig
from optmerge.drivers.adam import AdamDriver
from optmerge.drivers.variables import Variables
from optmerge.errors import ConfigError, RunError
from optmerge.records import Evaluation

BOX = Variables(("a", "b", "c"), np.full(3, -9.0), np.full(3, 9.0), np.array([0.1, -0.2, 0.3]))


def adam(
    config: AdamConfig,
    *,
    box: Variables = BOX,
    sizes: dict[str, int] | None = None,
    budget: int | None = 10,
    seed: int = 0,
) -> AdamDriver:
    return AdamDriver(config, box, seed=np.random.SeedSequence(seed), fit_sizes=sizes or {}, budget=budget)


def step(driver: AdamDriver, gradient: list[float] | np.ndarray | None) -> None:
    told = None if gradient is None else np.asarray(gradient, dtype=np.float64)
    driver.tell(driver.ask(), [Evaluation(1.0, gradient=told)])


def test_agrees_with_torch() -> None:
    config = AdamConfig(lr=0.03, beta1=0.8, beta2=0.95, eps=1e-6)
    driver = adam(config)
    theirs = torch.nn.Parameter(torch.tensor(BOX.start))
    optimiser = torch.optim.Adam([theirs], lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps)
    generator = np.random.default_rng(0)
    for _ in range(25):
        gradient = generator.standard_normal(3)
        step(driver, gradient)
        theirs.grad = torch.tensor(gradient)
        optimiser.step()
    np.testing.assert_allclose(driver.ask()[0].vector, theirs.detach().numpy(), rtol=1e-13)


def test_a_variable_leaves_its_bound_when_the_gradient_turns() -> None:
    box = Variables(("a",), np.array([0.0]), np.array([1.0]), np.array([0.95]))
    driver = adam(AdamConfig(lr=0.1, beta1=0.0), box=box)
    step(driver, [-1.0])
    assert driver.ask()[0].vector.tolist() == [1.0]
    assert driver.info()["at_bounds"] == 1.0
    step(driver, [1.0])
    assert driver.ask()[0].vector[0] < 1.0


def test_clamp_agrees_with_a_clamp_in_the_graph() -> None:
    box = Variables(("a", "b", "c"), np.zeros(3), np.ones(3), np.array([0.1, 0.5, 0.95]))
    config = AdamConfig(lr=0.1, bound="clamp")
    driver = adam(config, box=box, budget=60)
    theirs = torch.nn.Parameter(torch.tensor(box.start))
    optimiser = torch.optim.Adam([theirs], lr=config.lr)
    stuck = torch.zeros(3, dtype=torch.bool)
    for at in range(60):
        target = torch.tensor([0.5 + np.sin(at / 6), 0.5 + np.cos(at / 7), 0.5 + np.sin(at / 5 + 1)])
        optimiser.zero_grad()
        clamped = theirs.clamp(0, 1)
        ((clamped - target) ** 2).sum().backward()  # type: ignore[no-untyped-call]
        stuck = theirs.detach() != clamped.detach()
        (candidate,) = driver.ask()
        np.testing.assert_allclose(candidate.vector, clamped.detach().numpy(), rtol=1e-12, atol=1e-14)
        driver.tell([candidate], [Evaluation(1.0, gradient=2 * (candidate.vector - target.numpy()))])
        optimiser.step()
    assert stuck.any()  # outside, where it has no gradient any more


def test_project_comes_back_where_clamp_is_stuck() -> None:
    box = Variables(("a",), np.zeros(1), np.ones(1), np.array([0.95]))
    ends = {}
    for bound in ("project", "clamp"):
        driver = adam(AdamConfig(lr=0.1, beta1=0.0, bound=bound), box=box)
        step(driver, [-1.0])
        for _ in range(3):
            step(driver, [1.0])
        ends[bound] = driver.ask()[0].vector[0]
    assert ends["project"] < 0.9
    assert ends["clamp"] == 1.0


def test_cosine_ends_with_the_budget() -> None:
    driver = adam(AdamConfig(lr=0.4, schedule="cosine"), budget=4)
    rates = []
    for _ in range(5):
        rates.append(driver.rate)
        step(driver, [1.0, 1.0, 1.0])
    assert rates == pytest.approx([0.4, 0.2 + 0.2 * 0.5**0.5, 0.2, 0.2 - 0.2 * 0.5**0.5, 0.0])


def test_cosine_needs_a_budget() -> None:
    with pytest.raises(ConfigError, match=r"budget\.evaluations is null.*Set budget\.evaluations"):
        adam(AdamConfig(schedule="cosine"), budget=None)


@pytest.mark.parametrize("gradient", [None, [np.nan, 0.0, 0.0], [0.0, np.inf, 0.0]])
def test_a_gradient_that_is_not_finite_is_passed_over(
    gradient: list[float] | None, caplog: pytest.LogCaptureFixture
) -> None:
    driver = adam(AdamConfig(batch=2), sizes={"t": 7})
    before = driver.ask()[0]
    driver.tell([before], [Evaluation(1.0, gradient=None if gradient is None else np.array(gradient))])
    after = driver.ask()[0]
    assert after.vector.tobytes() == before.vector.tobytes()
    assert after.examples != before.examples
    assert "missing or not finite" in caplog.text


@given(
    sizes=st.dictionaries(st.sampled_from("abc"), st.integers(1, 30), min_size=1),
    batch=st.integers(1, 31),
    seed=st.integers(0, 2**32),
)
def test_every_epoch_shows_every_example_once(sizes: dict[str, int], batch: int, seed: int) -> None:
    driver = adam(AdamConfig(batch=batch), sizes=sizes, seed=seed)
    batches = []
    for _ in range(2 * max(-(-size // batch) for size in sizes.values())):
        (candidate,) = driver.ask()
        driver.tell([], [])
        batches.append(candidate.examples)
    if all(size <= batch for size in sizes.values()):
        assert batches == [None] * len(batches)
        return
    for task, size in sizes.items():
        parts = -(-size // batch)
        seen = [batch_examples[task] for batch_examples in batches if batch_examples is not None]
        assert {len(positions) for positions in seen} <= {size // parts, -(-size // parts)}
        assert max(map(len, seen)) <= batch
        for epoch in (0, parts):
            assert sorted(sum(seen[epoch : epoch + parts], ())) == list(range(size))


def test_epochs_are_shuffled_anew() -> None:
    driver = adam(AdamConfig(batch=5), sizes={"t": 20})
    epochs = []
    for _ in range(2):
        epoch = []
        for _ in range(4):
            epoch.append(driver.ask()[0].examples)
            driver.tell([], [])
        epochs.append(epoch)
    assert epochs[0] != epochs[1]


def test_a_state_of_another_batch_is_refused() -> None:
    state = adam(AdamConfig(batch=5), sizes={"t": 20}).state_dict()
    with pytest.raises(RunError, match="does not fit"):
        adam(AdamConfig(batch=5), sizes={"t": 21}).load_state_dict(state)


def test_a_restart_goes_on_from_the_vector_with_a_smaller_step_and_no_memory() -> None:
    config = AdamConfig(lr=0.1)
    driver, resumed = adam(config), adam(config)
    for _ in range(3):
        step(driver, [2.0, 2.0, 2.0])
    driver.ask()
    assert driver.restart(np.full(3, 99.0))
    assert driver.generation == 4
    assert driver.ask()[0].vector.tolist() == [9.0, 9.0, 9.0]
    resumed.load_state_dict(driver.state_dict())
    for one in (driver, resumed):
        step(one, [3.0, 3.0, 3.0])
        np.testing.assert_allclose(one.ask()[0].vector, np.full(3, 8.99), rtol=1e-7)
        assert one.info()["lr"] == pytest.approx(0.01)
