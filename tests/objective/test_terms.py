"""Each term against its formula, written out naively."""

from __future__ import annotations

import math

import pytest
import torch

from optmerge.config.objectives import EntropyConfig, ExpertKLConfig
from optmerge.objective import Accuracy, Agreement, CrossEntropy, Entropy, ExpertKL, Outputs, TeacherOutputs

from .cases import CLASSES, Case, make_case

KINDS = ["classifier", "lm"]
both = pytest.mark.parametrize("kind", KINDS)


def rows_of(case: Case, position: int) -> list[tuple[torch.Tensor, int]]:
    """The (probabilities, truth) of every prediction of one example that counts."""
    if case.kind == "classifier":
        return [(case.logits[position].softmax(-1), position % CLASSES)]
    ids, completion = case.ids[position], case.completions[position]
    return [(case.logits[position][t - 1].softmax(-1), ids[t]) for t in range(1, len(ids)) if completion[t]]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


@both
def test_entropy(kind: str) -> None:
    case = make_case(kind)
    batch, outputs = case.batch(case.everything())
    wanted = [mean([-float((p * p.log()).sum()) for p, _ in rows_of(case, n)]) for n in range(4)]
    torch.testing.assert_close(Entropy(EntropyConfig()).per_example(outputs, batch, None), torch.tensor(wanted))


@both
def test_cross_entropy_and_accuracy(kind: str) -> None:
    case = make_case(kind)
    batch, outputs = case.batch(case.everything())
    loss = [mean([-math.log(p[truth]) for p, truth in rows_of(case, n)]) for n in range(4)]
    hits = [mean([float(p.argmax() == truth) for p, truth in rows_of(case, n)]) for n in range(4)]
    torch.testing.assert_close(CrossEntropy().per_example(outputs, batch, None), torch.tensor(loss))
    torch.testing.assert_close(Accuracy().per_example(outputs, batch, None), torch.tensor(hits))


@both
@pytest.mark.parametrize("k", [None, 1, 3, CLASSES - 1, CLASSES, 50])
def test_expert_kl_is_the_divergence_of_the_coarse_predictions(kind: str, k: int | None) -> None:
    case, expert = make_case(kind), make_case(kind, seed=1)
    batch, outputs = case.batch(case.everything())
    teacher = TeacherOutputs.collect([expert.batch(case.everything())], k)
    wanted, exact = [], []
    for n in range(4):
        ours = [q for q, _ in rows_of(case, n)]
        theirs = [p for p, _ in rows_of(expert, n)]
        coarse = []
        for p, q in zip(theirs, ours, strict=True):
            top = p.argsort(descending=True)[: k or CLASSES]
            rest = torch.ones(CLASSES, dtype=torch.bool).index_fill(0, top, False)
            terms = [float(p[i] * (p[i] / q[i]).log()) for i in top]
            if rest.any():
                terms.append(float(p[rest].sum() * (p[rest].sum() / q[rest].sum()).log()))
            coarse.append(sum(terms))
        wanted.append(mean(coarse))
        exact.append(mean([float((p * (p / q).log()).sum()) for p, q in zip(theirs, ours, strict=True)]))
    got = ExpertKL(ExpertKLConfig(top_k=k)).per_example(outputs, batch, teacher.batch(batch))
    torch.testing.assert_close(got, torch.tensor(wanted), rtol=1e-5, atol=1e-6)
    if k is None or k >= CLASSES:
        torch.testing.assert_close(got, torch.tensor(exact), rtol=1e-5, atol=1e-6)
    else:
        assert bool((got <= torch.tensor(exact) + 1e-6).all())


@both
@pytest.mark.parametrize("k", [None, 2])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("scale", [2.0, 40.0])
def test_the_expert_is_at_no_distance_from_itself(kind: str, k: int | None, temperature: float, scale: float) -> None:
    expert = make_case(kind, scale=scale)
    teacher = TeacherOutputs.collect([expert.batch(expert.everything())], k)
    term = ExpertKL(ExpertKLConfig(top_k=k, temperature=temperature))
    for positions in ([0, 1, 2, 3], [2, 0], [3]):
        batch, outputs = expert.batch(positions, left=True)
        outputs.logits.requires_grad_()
        got = term.per_example(outputs, batch, teacher.batch(batch))
        torch.testing.assert_close(got, torch.zeros(len(positions)), atol=1e-5, rtol=0)
        got.sum().backward()
        assert outputs.logits.grad is not None
        assert float(outputs.logits.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_temperature_softens_both_sides(temperature: float) -> None:
    case, expert = make_case("classifier"), make_case("classifier", seed=1)
    batch, outputs = case.batch(case.everything())
    teacher = TeacherOutputs.collect([expert.batch(case.everything())], None)
    p = (torch.stack(expert.logits) / temperature).softmax(-1)
    q = (outputs.logits / temperature).softmax(-1)
    got = ExpertKL(ExpertKLConfig(temperature=temperature)).per_example(outputs, batch, teacher.batch(batch))
    torch.testing.assert_close(got, temperature**2 * (p * (p / q).log()).sum(-1))


def test_the_tail_keeps_its_digits() -> None:
    """The kept classes hold all but 1e-13 of the probability; 1 minus their sum would be 0 in fp32."""
    expert = torch.tensor([[0.0, -30.0, -31.0]])
    merged = torch.tensor([[0.0, -10.0, -31.0]], requires_grad=True)
    case = Case("classifier", [expert[0]], [[1]], [[False]])
    batch, _ = case.batch([0])
    teacher = TeacherOutputs.collect([(batch, Outputs(expert))], 1)
    value = ExpertKL(ExpertKLConfig(top_k=1)).per_example(Outputs(merged), batch, teacher.batch(batch))
    value.sum().backward()
    assert value.item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)
    assert merged.grad is not None
    assert bool(merged.grad.isfinite().all())


@both
@pytest.mark.parametrize("k", [None, 1])
def test_agreement_counts_equal_choices(kind: str, k: int | None) -> None:
    case, expert = make_case(kind), make_case(kind, seed=1)
    batch, outputs = case.batch(case.everything())
    teacher = TeacherOutputs.collect([expert.batch(case.everything())], k).batch(batch)
    wanted = [
        mean(
            [
                float(q.argmax() == p.argmax())
                for (q, _), (p, _) in zip(rows_of(case, n), rows_of(expert, n), strict=True)
            ]
        )
        for n in range(4)
    ]
    torch.testing.assert_close(Agreement().per_example(outputs, batch, teacher), torch.tensor(wanted))


def test_an_expert_agrees_with_itself_where_logits_are_tied() -> None:
    tied = Case("classifier", [torch.tensor([1.0, 2.0, 2.0, 2.0, 0, 2.0, 2.0])] * 4, [[1]] * 4, [[False]] * 4)
    batch, outputs = tied.batch(tied.everything())
    for k in (None, 1, 2):
        teacher = TeacherOutputs.collect([(batch, outputs)], k).batch(batch)
        assert Agreement().per_example(outputs, batch, teacher).tolist() == [1.0] * 4
