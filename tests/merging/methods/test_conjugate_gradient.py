"""MaTS (Tam et al. 2023): conjugate gradients against dense solves, RegMean and its own limits."""

from __future__ import annotations

import itertools

import pytest
import torch

from optmerge.config.methods import MatsConfig, Need, RegMeanConfig
from optmerge.merging.methods import TensorKind, build_method
from optmerge.merging.methods.conjugate_gradient import conjugate_gradient, kronecker_mean
from optmerge.merging.methods.gram_solve import shrunken
from tests.merging.methods.toy import ToyModels, every_kind, random

OUT, IN, COUNT = 5, 4, 3
WEIGHTS = (1.0, 0.5, 2.0)
Matrices = list[torch.Tensor]


def layer(*, rows: int = 30, seed: int = 4) -> tuple[Matrices, Matrices, Matrices]:
    """Task vectors, Gram matrices of inputs, and of output gradients."""
    generator = torch.Generator().manual_seed(seed)

    def grams(size: int) -> Matrices:
        samples = [random(generator, rows, size) for _ in range(COUNT)]
        return [x.mT @ x / rows for x in samples]

    return [random(generator, OUT, IN) for _ in range(COUNT)], grams(IN), grams(OUT)


def solve(
    deltas: Matrices,
    grams: Matrices,
    outputs: Matrices | None,
    *,
    start: float = 0.3,
    iterations: int = 500,
    tolerance: float = 1e-13,
    shrink: float = 1.0,
) -> torch.Tensor:
    return kronecker_mean(
        deltas,
        grams,
        outputs,
        weights=WEIGHTS,
        start=start,
        iterations=iterations,
        tolerance=tolerance,
        shrink=shrink,
    )


def dense(deltas: Matrices, grams: Matrices, outputs: Matrices) -> torch.Tensor:
    """The same by one Kronecker product: vec(H W G) = (H x G) vec(W), rows first."""
    triples = list(zip(WEIGHTS, outputs, grams, strict=True))
    total = sum(weight * torch.kron(h, g) for weight, h, g in triples)
    target = sum(
        weight * torch.kron(h, g) @ delta.flatten() for (weight, h, g), delta in zip(triples, deltas, strict=True)
    )
    assert isinstance(total, torch.Tensor)
    assert isinstance(target, torch.Tensor)
    solved: torch.Tensor = torch.linalg.solve(total, target)
    return solved.view(OUT, IN)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_kfac_is_the_dense_solution(dtype: torch.dtype) -> None:
    deltas, grams, outputs = layer()
    rounded = [delta.to(dtype).to(torch.float32 if dtype == torch.bfloat16 else dtype) for delta in deltas]
    found = solve(rounded, grams, outputs)
    assert found.dtype == rounded[0].dtype
    expected = dense([delta.double() for delta in rounded], grams, outputs)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_without_output_matrices_it_is_regmean() -> None:
    deltas, grams, _ = layer()
    summed = sum(weight * gram for weight, gram in zip(WEIGHTS, grams, strict=True))
    target = sum(weight * delta @ gram for weight, delta, gram in zip(WEIGHTS, deltas, grams, strict=True))
    assert isinstance(summed, torch.Tensor)
    assert isinstance(target, torch.Tensor)
    exact = torch.linalg.solve(summed, target.mT).mT
    torch.testing.assert_close(solve(deltas, grams, None), exact)
    units = [torch.eye(OUT, dtype=torch.float64)] * COUNT
    torch.testing.assert_close(solve(deltas, grams, units), exact)


def test_without_a_step_it_is_where_it_starts() -> None:
    deltas, grams, outputs = layer()
    found = solve(deltas, grams, outputs, iterations=0, start=0.3)
    total = sum(weight * delta for weight, delta in zip(WEIGHTS, deltas, strict=True))
    torch.testing.assert_close(found, 0.3 * total)


@pytest.mark.parametrize("kfac", [True, False])
def test_equal_experts_are_a_fixed_point(kfac: bool) -> None:
    deltas, grams, outputs = layer()
    same = [deltas[0]] * COUNT
    begun_there = 1 / sum(WEIGHTS)
    for start, iterations in ((begun_there, 1), (0.3, 500)):
        found = solve(same, grams, outputs if kfac else None, start=start, iterations=iterations)
        torch.testing.assert_close(found, deltas[0])


def test_the_error_never_grows_in_the_norm_of_the_operator() -> None:
    generator = torch.Generator().manual_seed(0)
    root = random(generator, 30, 30)
    matrix = root @ root.mT
    solution = random(generator, 30)
    start, target = torch.zeros(30, dtype=torch.float64), matrix @ solution
    errors, residuals = [], []
    for iterations in range(31):
        found = conjugate_gradient(matrix.matmul, target, start, iterations=iterations, tolerance=0.0)
        error = found - solution
        errors.append(float(error @ matrix @ error))
        residuals.append(float((target - matrix @ found).norm()))
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))
    assert residuals[-1] < 1e-2 * residuals[0]
    assert not start.any()


def test_it_stops_at_the_residual_that_is_asked_for() -> None:
    deltas, grams, outputs = layer()
    steps = []
    for tolerance in (1e-1, 1e-4, 1e-8):
        operator_calls = 0

        def operator(matrix: torch.Tensor) -> torch.Tensor:
            nonlocal operator_calls
            operator_calls += 1
            return outputs[0] @ matrix @ grams[0]

        target = outputs[0] @ deltas[0] @ grams[0]
        found = conjugate_gradient(operator, target, torch.zeros_like(target), iterations=1000, tolerance=tolerance)
        assert (target - outputs[0] @ found @ grams[0]).norm() <= 1.001 * tolerance * target.norm()
        steps.append(operator_calls)
    assert steps[0] < steps[1] < steps[2] < 200


def test_the_start_matters_only_where_no_input_points() -> None:
    deltas, grams, outputs = layer()
    for gram in grams:
        gram[1], gram[:, 1] = 0, 0
    far, near = (solve(deltas, grams, outputs, start=start) for start in (2.0, 0.0))
    assert not near[:, 1].any()
    total = sum(weight * delta for weight, delta in zip(WEIGHTS, deltas, strict=True))
    assert isinstance(total, torch.Tensor)
    torch.testing.assert_close(far[:, 1], 2.0 * total[:, 1])
    kept = [0, 2, 3]
    torch.testing.assert_close(far[:, kept], near[:, kept], rtol=1e-6, atol=1e-8)


def test_many_steps_go_far_where_curvature_is_next_to_nothing() -> None:
    """The fewer the steps, and the less of the off-diagonal, the nearer to the task vectors (docs/methods.md)."""
    generator, size = torch.Generator().manual_seed(5), 16
    scales = torch.logspace(0, -3, size, dtype=torch.float64)

    def little_data() -> Matrices:
        """Gram matrices of hardly more samples than dimensions, most of which vary little."""
        axes = torch.linalg.qr(random(generator, size, size)).Q
        samples = [(random(generator, size + 2, size) * scales) @ axes.mT for _ in range(COUNT)]
        return [x.mT @ x / len(x) for x in samples]

    deltas = [random(generator, size, size) for _ in range(COUNT)]
    grams, outputs = little_data(), little_data()

    def length(iterations: int, *, shrink: float = 1.0) -> float:
        """Of the delta, as a share of the mean task vector's."""
        found = solve(deltas, grams, outputs, iterations=iterations, tolerance=1e-5, shrink=shrink)
        return float(found.norm() / torch.stack(deltas).mean(0).norm())

    assert length(10) < 2
    assert length(100) > 10
    assert length(100, shrink=0.9) < 2.5


def test_nothing_to_solve_stays_at_the_start_and_finite() -> None:
    deltas, grams, outputs = layer()
    nothing = [torch.zeros_like(gram) for gram in grams]
    torch.testing.assert_close(solve(deltas, nothing, outputs), solve(deltas, grams, outputs, iterations=0))
    zeros = [torch.zeros_like(delta) for delta in deltas]
    assert not solve(zeros, grams, outputs).any()


def test_a_common_scale_of_the_matrices_cancels() -> None:
    deltas, grams, outputs = layer()
    expected = solve(deltas, grams, outputs)
    scaled = solve(deltas, [1e-6 * gram for gram in grams], [1e3 * gram for gram in outputs])
    torch.testing.assert_close(scaled, expected)


def one_by_one(deltas: Matrices, grams: Matrices, outputs: Matrices, *, iterations: int) -> torch.Tensor:
    """The same steps with the experts' products one after the other."""
    triples = list(zip(WEIGHTS, outputs, grams, strict=True))

    def operator(matrix: torch.Tensor) -> torch.Tensor:
        return torch.stack([weight * h @ (matrix @ g) for weight, h, g in triples]).sum(0)

    products = [weight * h @ (delta @ g) for (weight, h, g), delta in zip(triples, deltas, strict=True)]
    begin = torch.stack([0.3 * weight * delta for weight, delta in zip(WEIGHTS, deltas, strict=True)]).sum(0)
    return conjugate_gradient(operator, torch.stack(products).sum(0), begin, iterations=iterations, tolerance=1e-13)


@pytest.mark.parametrize("iterations", [0, 1, 3, 500])
def test_two_products_a_step_are_those_of_the_experts_one_by_one(iterations: int) -> None:
    matrices = layer()
    expected = one_by_one(*matrices, iterations=iterations)
    torch.testing.assert_close(solve(*matrices, iterations=iterations), expected, rtol=1e-6, atol=1e-9)


def test_matrices_are_made_ready_once_and_not_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Matrices = []

    def counted(gram: torch.Tensor, shrink: float) -> torch.Tensor:
        made.append(gram)
        return shrunken(gram, shrink)

    monkeypatch.setattr("optmerge.merging.methods.conjugate_gradient.shrunken", counted)
    solve(*layer(), iterations=20, tolerance=0.0)
    assert len(made) == 2 * COUNT


def test_shrinking_is_of_both_matrices() -> None:
    deltas, grams, outputs = layer()
    diagonals = [[torch.diag(gram.diagonal()) for gram in of] for of in (grams, outputs)]
    torch.testing.assert_close(solve(deltas, grams, outputs, shrink=0.0), dense(deltas, *diagonals))


def test_an_expert_of_weight_zero_is_left_out() -> None:
    deltas, grams, outputs = layer()
    weights = (1.0, 0.0, 2.0)
    settings = {"start": 0.3, "iterations": 500, "tolerance": 1e-13, "shrink": 1.0}
    found = kronecker_mean(deltas, grams, outputs, weights=weights, **settings)  # type: ignore[arg-type]
    two = [[of[0], of[2]] for of in (deltas, grams, outputs)]
    torch.testing.assert_close(found, kronecker_mean(*two, weights=(1.0, 2.0), **settings))  # type: ignore[arg-type]


def stored(*, input_first: bool) -> ToyModels:
    deltas, grams, outputs = layer()
    base = torch.full((IN, OUT) if input_first else (OUT, IN), 0.5, dtype=torch.float64)
    experts = {f"expert-{i}": {"w": base + (delta.mT if input_first else delta)} for i, delta in enumerate(deltas)}
    statistics: dict[tuple[Need, str, str], torch.Tensor] = {}
    for i, (gram, output) in enumerate(zip(grams, outputs, strict=True)):
        statistics["grams", f"expert-{i}", "w"] = gram
        statistics["output-grams", f"expert-{i}", "w"] = output
    kinds = {"w": TensorKind("mlp", input_first, tuple(base.shape))}
    return ToyModels({"w": base}, experts, kinds=kinds, statistics=statistics)


@pytest.mark.parametrize("input_first", [False, True])
def test_layers_stored_either_way(input_first: bool) -> None:
    models = stored(input_first=input_first)
    settings = MatsConfig(tolerance=1e-13, iterations=500, weights=dict(zip(models.experts, WEIGHTS, strict=True)))
    found = build_method(settings, models.experts).delta(models, "w")
    expected = dense(*layer())
    torch.testing.assert_close(found, expected.mT if input_first else expected)


def test_by_inputs_alone_it_is_the_method_regmean() -> None:
    models = every_kind(3)
    ours = build_method(MatsConfig(objective="grams", tolerance=1e-12, iterations=500), models.experts)
    assert ours.needs == {"grams"}
    theirs = build_method(RegMeanConfig(shrink=1.0, ridge=0.0), models.experts)
    for name in models.names:
        torch.testing.assert_close(ours.delta(models, name), theirs.delta(models, name), rtol=1e-4, atol=1e-5)


def test_what_lacks_a_matrix_is_the_mean_or_the_base() -> None:
    models = every_kind(3)
    for name in ("norm.weight", "patch.weight", "embed.weight", "mlp.experts"):
        mean = torch.stack([models.task_vector(expert, name) for expert in models.experts]).mean(0)
        torch.testing.assert_close(build_method(MatsConfig(), models.experts).delta(models, name), mean)
        assert not build_method(MatsConfig(others="base"), models.experts).delta(models, name).any()
    models.statistics = {key: value for key, value in models.statistics.items() if key[0] != "output-grams"}
    name = "mlp.up.weight"  # a layer too large for a matrix of its outputs
    mean = torch.stack([models.task_vector(expert, name) for expert in models.experts]).mean(0)
    torch.testing.assert_close(build_method(MatsConfig(), models.experts).delta(models, name), mean)
