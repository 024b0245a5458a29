"""Each term against its formula, written out naively."""

from __future__ import annotations

import math

import pytest
import torch

from optmerge.calibration import Batch
from optmerge.config.objectives import (
    EntropyConfig,
    ExpertKLConfig,
    HiddenAlignmentConfig,
    InformationMaximisationConfig,
    JensenShannonConfig,
    PseudoLabelConfig,
)
from optmerge.errors import ConfigError
from optmerge.objective import (
    Accuracy,
    Agreement,
    CrossEntropy,
    Entropy,
    ExpertKL,
    ModelTerm,
    Outputs,
    TeacherBatch,
    TeacherOutputs,
)
from optmerge.objective.f1 import F1
from optmerge.objective.hidden_alignment import HiddenAlignment
from optmerge.objective.information_maximisation import InformationMaximisation
from optmerge.objective.jensen_shannon import JensenShannon
from optmerge.objective.kept import Keep, summarise, weyl
from optmerge.objective.labelled import ExactMatch
from optmerge.objective.perplexity import Perplexity
from optmerge.objective.pseudo_label import PseudoLabel

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
    teacher = TeacherOutputs.collect([expert.batch(case.everything())], Keep(k))
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
@pytest.mark.parametrize("samples", [0, 3])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("scale", [2.0, 40.0])
def test_the_expert_is_at_no_distance_from_itself(
    kind: str, k: int | None, samples: int, temperature: float, scale: float
) -> None:
    expert = make_case(kind, scale=scale)
    keep = Keep(k, samples=samples, temperatures=(3.0,))
    teacher = TeacherOutputs.collect([expert.batch(expert.everything())], keep)
    term = ExpertKL(ExpertKLConfig(top_k=k, temperature=temperature))
    for positions in ([0, 1, 2, 3], [2, 0], [3]):
        batch, outputs = expert.batch(positions, left=True)
        outputs.logits.requires_grad_()
        got = term.per_example(outputs, batch, teacher.batch(batch))
        torch.testing.assert_close(got, torch.zeros(len(positions)), atol=1e-5, rtol=0)
        got.sum().backward()  # type: ignore[no-untyped-call]
        assert outputs.logits.grad is not None
        if not (k and samples):  # of what is drawn only the expected slope is 0
            assert float(outputs.logits.grad.abs().max()) < 1e-5


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_temperature_softens_both_sides(temperature: float) -> None:
    case, expert = make_case("classifier"), make_case("classifier", seed=1)
    batch, outputs = case.batch(case.everything())
    teacher = TeacherOutputs.collect([expert.batch(case.everything())], Keep(None))
    p = (torch.stack(expert.logits) / temperature).softmax(-1)
    q = (outputs.logits / temperature).softmax(-1)
    got = ExpertKL(ExpertKLConfig(temperature=temperature)).per_example(outputs, batch, teacher.batch(batch))
    torch.testing.assert_close(got, temperature**2 * (p * (p / q).log()).sum(-1))


def predictions(rows: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two models' logits over a vocabulary with a long tail."""
    generator = torch.Generator().manual_seed(0)
    slope = -1.5 * torch.arange(1, classes + 1).log()
    order = torch.rand(rows, classes, generator=generator).argsort(-1)
    expert = slope[order] + torch.randn(rows, classes, generator=generator)
    return expert, expert + 1.2 * torch.randn(rows, classes, generator=generator)


@pytest.mark.parametrize(("name", "temperature"), [("expert-kl", 1.0), ("expert-kl", 2.0), ("jensen-shannon", 1.0)])
def test_draws_make_up_for_the_classes_that_are_not_kept(name: str, temperature: float) -> None:
    """Over many rows the estimate is the whole divergence; the coarse one is far below."""
    expert, merged = predictions(3000, 400)
    batch, outputs = classified(merged)
    config = ExpertKLConfig(temperature=temperature) if name == "expert-kl" else JensenShannonConfig()
    term = ExpertKL(config) if isinstance(config, ExpertKLConfig) else JensenShannon(config)

    def judged(keep: Keep) -> torch.Tensor:
        teacher = TeacherOutputs.collect([(batch, Outputs(expert))], keep)
        return term.per_example(outputs, batch, teacher.batch(batch)).double()

    whole = judged(Keep(None))
    coarse = judged(Keep(8, temperatures=(2.0,)))
    sampled = judged(Keep(8, samples=64, temperatures=(2.0,)))
    assert float(coarse.mean()) < 0.93 * float(whole.mean())
    assert float(sampled.mean()) == pytest.approx(float(whole.mean()), rel=0.01)
    if name == "jensen-shannon":
        assert bool((sampled >= coarse - 1e-6).all())


def test_a_slope_of_the_estimate_is_that_of_the_whole_divergence() -> None:
    expert, merged = predictions(2000, 300)
    direction = torch.randn(merged.shape, generator=torch.Generator().manual_seed(1))
    slopes = []
    for keep in (Keep(None), Keep(8, samples=16)):
        step = torch.zeros((), requires_grad=True)
        batch, outputs = classified(merged + step * direction * 0.1 + step * (expert - merged))
        teacher = TeacherOutputs.collect([(batch, Outputs(expert))], keep).batch(batch)
        ExpertKL(ExpertKLConfig()).per_example(outputs, batch, teacher).mean().backward()  # type: ignore[no-untyped-call]
        assert step.grad is not None
        slopes.append(float(step.grad))
    assert slopes[1] == pytest.approx(slopes[0], rel=0.02)


def test_another_temperature_than_that_of_the_draws_is_weighted() -> None:
    """A term at temperature 1 beside one at 3: what is drawn is drawn at 3, and still estimates the sum at 1."""
    expert, merged = predictions(3000, 400)
    batch, _ = classified(merged)
    keep = Keep(8, samples=32, temperatures=(3.0,))
    view = TeacherOutputs.collect([(batch, Outputs(expert))], keep).batch(batch).at(1.0)
    assert view.log_weights is not None
    others = view.log_probs[:, -1].double().exp()
    torch.testing.assert_close(view.log_weights.double().exp().mean(-1).mean(), others.mean(), rtol=0.02, atol=0)


def test_nothing_is_drawn_twice_as_often_as_it_should_be() -> None:
    """Systematic sampling: a class comes floor(m p) or ceil(m p) times, p its share of what is not kept."""
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    rows = summarise(logits, Keep(4, samples=20), weyl(torch.arange(50), torch.zeros(50, dtype=torch.int64)))
    assert rows.drawn is not None
    assert rows.indices is not None
    shares = logits.double().scatter(-1, rows.indices.long(), -math.inf).softmax(-1)
    counts = torch.zeros_like(shares).scatter_add(-1, rows.drawn.long(), torch.ones(50, 20, dtype=torch.float64))
    assert bool(((counts - 20 * shares).abs() < 1).all())
    starts = weyl(torch.arange(1000) // 10, torch.arange(1000) % 10)
    assert float((starts.sort().values - torch.arange(1000) / 1000).abs().max()) < 0.01


def test_classes_that_are_impossible_for_either_leave_numbers() -> None:
    """The expert has one class beside the kept one, or none; the merged model may rule out what was drawn."""
    inf = math.inf
    expert = torch.tensor([[5.0, 1.0, -inf, -inf, -inf], [5.0, -inf, -inf, -inf, -inf], [5.0, 1.0, 0.0, 0.0, 0.0]])
    merged = torch.tensor([[4.0, 1.0, 1.0, 0.0, 0.0], [4.0, 1.0, 0.0, 0.0, 0.0], [4.0, 1.0, 0.0, 0.0, 0.5]])
    merged.requires_grad_()
    batch, outputs = classified(merged)
    for term in (ExpertKL(ExpertKLConfig()), JensenShannon(JensenShannonConfig())):
        teacher = TeacherOutputs.collect([(batch, Outputs(expert))], Keep(1, samples=2)).batch(batch)
        value = term.per_example(outputs, batch, teacher)
        (slope,) = torch.autograd.grad(value.sum(), merged)
        assert bool(value.isfinite().all())
        assert bool(slope.isfinite().all())
        p, q = expert[0].softmax(-1)[:2], merged[0].detach().softmax(-1)[:2]
        if term.name == "expert-kl":
            assert value[0].item() == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-5)


@pytest.mark.parametrize("scale", [50.0, 300.0])
def test_others_that_the_expert_all_but_excludes_leave_numbers(scale: float) -> None:
    """Below exp(-88) a probability is 0 in fp32, and what it is divided by beyond all numbers."""
    expert = torch.stack(make_case("classifier").logits)
    expert[:, 2:] -= scale
    batch, merged = classified(torch.zeros_like(expert))
    merged.logits.requires_grad_()
    teacher = TeacherOutputs.collect([(batch, Outputs(expert))], Keep(2, samples=3)).batch(batch)
    whole = TeacherOutputs.collect([(batch, Outputs(expert))], Keep(None)).batch(batch)
    for term in (ExpertKL(ExpertKLConfig()), JensenShannon(JensenShannonConfig())):
        got = term.per_example(merged, batch, teacher)
        torch.testing.assert_close(got, term.per_example(merged, batch, whole), rtol=1e-5, atol=1e-6)
        (slope,) = torch.autograd.grad(got.sum(), merged.logits)
        assert bool(slope.isfinite().all())


def test_a_temperature_that_nothing_was_kept_for_is_refused() -> None:
    expert, merged = predictions(3, 20)
    batch, outputs = classified(merged)
    teacher = TeacherOutputs.collect([(batch, Outputs(expert))], Keep(4, samples=4)).batch(batch)
    with pytest.raises(ValueError, match=r"temperature 2\.0"):
        ExpertKL(ExpertKLConfig(temperature=2.0)).per_example(outputs, batch, teacher)


def test_the_tail_keeps_its_digits() -> None:
    """The kept classes hold all but 1e-13 of the probability; 1 minus their sum would be 0 in fp32."""
    expert = torch.tensor([[0.0, -30.0, -31.0]])
    merged = torch.tensor([[0.0, -10.0, -31.0]], requires_grad=True)
    case = Case("classifier", [expert[0]], [[1]], [[False]])
    batch, _ = case.batch([0])
    teacher = TeacherOutputs.collect([(batch, Outputs(expert))], Keep(1))
    value = ExpertKL(ExpertKLConfig(top_k=1)).per_example(Outputs(merged), batch, teacher.batch(batch))
    value.sum().backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)
    assert merged.grad is not None
    assert bool(merged.grad.isfinite().all())


@both
@pytest.mark.parametrize("k", [None, 1])
def test_agreement_counts_equal_choices(kind: str, k: int | None) -> None:
    case, expert = make_case(kind), make_case(kind, seed=1)
    batch, outputs = case.batch(case.everything())
    teacher = TeacherOutputs.collect([expert.batch(case.everything())], Keep(k)).batch(batch)
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
        teacher = TeacherOutputs.collect([(batch, outputs)], Keep(k)).batch(batch)
        assert Agreement().per_example(outputs, batch, teacher).tolist() == [1.0] * 4


def finished(term: ModelTerm, outputs: Outputs, batch: Batch, teacher: TeacherBatch | None = None) -> torch.Tensor:
    """The value over one batch, in fp64."""
    return term.finish(term.per_example(outputs, batch, teacher).double().mean(0))


def classified(logits: torch.Tensor, labels: list[int] | None = None) -> tuple[Batch, Outputs]:
    """A classifier's batch."""
    inputs = {"input_ids": torch.ones(len(logits), 1, dtype=torch.int64)}
    targets = None if labels is None else torch.tensor(labels)
    return Batch(inputs, torch.arange(len(logits)), None, targets), Outputs(logits)


@pytest.mark.parametrize("classes", [2, 7])
def test_information_is_all_there_is_where_sure_predictions_are_spread_evenly(classes: int) -> None:
    batch, outputs = classified(torch.eye(classes).repeat(3, 1) * 1e3)
    value = finished(InformationMaximisation(InformationMaximisationConfig()), outputs, batch)
    assert float(value) == pytest.approx(-math.log(classes), rel=1e-6)


@pytest.mark.parametrize("logits", [torch.zeros(6, 7), torch.tensor([[1e3, *[0.0] * 6]]).repeat(6, 1)])
def test_there_is_no_information_where_all_predictions_are_equal(logits: torch.Tensor) -> None:
    """Unsure ones and a collapse to one class are equally bad."""
    batch, outputs = classified(logits)
    value = finished(InformationMaximisation(InformationMaximisationConfig()), outputs, batch)
    assert float(value) == pytest.approx(0.0, abs=1e-6)


@both
@pytest.mark.parametrize("diversity", [0.0, 0.5, 1.0])
def test_information_maximisation(kind: str, diversity: float) -> None:
    case = make_case(kind)
    batch, outputs = case.batch(case.everything())
    rows = [[p for p, _ in rows_of(case, n)] for n in range(4)]
    entropy = mean([mean([-float((p * p.log()).sum()) for p in example]) for example in rows])
    marginal = torch.stack([torch.stack(example).mean(0) for example in rows]).mean(0)
    wanted = entropy + diversity * float((marginal * marginal.log()).sum())
    term = InformationMaximisation(InformationMaximisationConfig(diversity=diversity))
    assert float(finished(term, outputs, batch)) == pytest.approx(wanted, rel=1e-5)


@both
@pytest.mark.parametrize("k", [None, 2])
def test_jensen_shannon(kind: str, k: int | None) -> None:
    case, expert = make_case(kind), make_case(kind, seed=1)
    batch, outputs = case.batch(case.everything())
    wanted = []
    for n in range(4):
        rows = []
        for (p, _), (q, _) in zip(rows_of(expert, n), rows_of(case, n), strict=True):
            if k is not None:
                top = p.argsort(descending=True)[:k]
                p, q = (torch.cat([r[top], (1 - r[top].sum())[None]]) for r in (p, q))
            middle = (p + q) / 2
            rows.append(float((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2)
        wanted.append(mean(rows))
    teacher = TeacherOutputs.collect([expert.batch(case.everything())], Keep(k)).batch(batch)
    got = JensenShannon(JensenShannonConfig()).per_example(outputs, batch, teacher)
    torch.testing.assert_close(got, torch.tensor(wanted), rtol=1e-4, atol=1e-6)


def test_jensen_shannon_is_symmetric_and_at_most_log_2() -> None:
    term = JensenShannon(JensenShannonConfig())
    case, other = make_case("classifier"), make_case("classifier", seed=1)
    ways = []
    for merged, expert in ((case, other), (other, case)):
        batch, outputs = merged.batch([0, 1, 2, 3])
        teacher = TeacherOutputs.collect([expert.batch([0, 1, 2, 3])], Keep(None)).batch(batch)
        ways.append(term.per_example(outputs, batch, teacher))
    torch.testing.assert_close(ways[0], ways[1])
    inf = math.inf
    batch, apart = classified(torch.tensor([[0.0, 0.0, -inf, -inf], [200.0, 0.0, 0.0, 0.0]]))
    _, expert_outputs = classified(torch.tensor([[-inf, -inf, 1.0, 0.0], [0.0, 200.0, 0.0, 0.0]]))
    teacher = TeacherOutputs.collect([(batch, expert_outputs)], Keep(None)).batch(batch)
    torch.testing.assert_close(term.per_example(apart, batch, teacher), torch.full((2,), math.log(2)))
    own = TeacherOutputs.collect([(batch, apart)], Keep(None)).batch(batch)
    torch.testing.assert_close(term.per_example(apart, batch, own), torch.zeros(2))


# Expert's and merged probabilities of two classes; whether the filter keeps the example.
FILTERED = [
    ([0.9, 0.1], [0.6, 0.4], True),  # they agree
    ([0.6, 0.4], [0.9, 0.1], True),  # they agree, and the merged model is surer
    ([0.9, 0.1], [0.2, 0.8], True),  # they do not, and the expert is surer
    ([0.75, 0.25], [0.25, 0.75], True),  # they do not, and are equally sure
    ([0.6, 0.4], [0.1, 0.9], False),  # they do not, and the merged model is surer
]


@pytest.mark.parametrize("k", [None, 1])
def test_pseudo_labels_that_the_filter_keeps(k: int | None) -> None:
    expert, merged = (torch.tensor([row[side] for row in FILTERED]).log() for side in (0, 1))
    merged.requires_grad_()
    batch, outputs = classified(merged)
    teacher = TeacherOutputs.collect([(batch, Outputs(expert))], Keep(k)).batch(batch)
    term = PseudoLabel(PseudoLabelConfig())
    statistics = term.per_example(outputs, batch, teacher)
    assert statistics[:, 1].tolist() == [float(kept) for _, _, kept in FILTERED]
    kept = [-math.log(q[0]) for _, q, keep in FILTERED if keep]
    value = finished(term, outputs, batch, teacher)
    assert float(value.detach()) == pytest.approx(mean(kept), rel=1e-6)
    value.backward()  # type: ignore[no-untyped-call]
    assert merged.grad is not None
    q = torch.tensor([row[1] for row in FILTERED])
    slope = (q - torch.tensor([1.0, 0.0])) / len(kept)  # of cross-entropy; the choice of what is kept has none
    torch.testing.assert_close(merged.grad, slope * statistics[:, 1:].detach())


def test_nothing_kept_is_nothing_lost() -> None:
    merged = torch.tensor([[5.0, 0.0], [9.0, 0.0]], requires_grad=True)
    batch, outputs = classified(merged)
    said = Outputs(torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
    teacher = TeacherOutputs.collect([(batch, said)], Keep(None)).batch(batch)
    value = finished(PseudoLabel(PseudoLabelConfig()), outputs, batch, teacher)
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == 0.0
    assert merged.grad is not None
    assert not bool(merged.grad.any())


def test_an_unsure_experts_confidence_is_not_that_of_all_other_classes() -> None:
    """The kept class has .3 and the tail .7: a merged model that is .5 sure of another class is the surer one."""
    expert = torch.tensor([[0.3, 0.25, 0.25, 0.2]]).log()
    batch, outputs = classified(torch.tensor([[0.1, 0.5, 0.2, 0.2]]).log())
    teacher = TeacherOutputs.collect([(batch, Outputs(expert))], Keep(1)).batch(batch)
    assert PseudoLabel(PseudoLabelConfig()).per_example(outputs, batch, teacher)[0, 1] == 0.0


@both
def test_pseudo_labels_without_a_filter_are_labels(kind: str) -> None:
    case, expert = make_case(kind), make_case(kind, seed=1)
    batch, outputs = case.batch(case.everything())
    teacher = TeacherOutputs.collect([expert.batch(case.everything())], Keep(2)).batch(batch)
    got = PseudoLabel(PseudoLabelConfig(filter="none")).per_example(outputs, batch, teacher)
    labelled = Batch(batch.inputs, batch.positions, batch.scored, teacher.choice)
    torch.testing.assert_close(got, CrossEntropy().per_example(outputs, labelled, None))


@both
def test_perplexity_weighs_every_prediction_alike(kind: str) -> None:
    case = make_case(kind)
    batch, outputs = case.batch(case.everything())
    losses = [-math.log(p[truth]) for n in range(4) for p, truth in rows_of(case, n)]
    assert float(finished(Perplexity(), outputs, batch)) == pytest.approx(math.exp(mean(losses)), rel=1e-5)


def test_perplexity_of_no_idea_is_the_number_of_classes() -> None:
    batch, outputs = classified(torch.zeros(5, 7), [0, 1, 2, 3, 4])
    assert float(finished(Perplexity(), outputs, batch)) == pytest.approx(7.0, rel=1e-6)


def test_f1_of_a_small_confusion_matrix() -> None:
    """Class 3 of four neither occurs nor is predicted, and has no F1."""
    truth, chosen = [0, 0, 1, 2, 2], [0, 1, 1, 2, 0]
    batch, outputs = classified(torch.eye(4)[chosen], truth)
    # Of class 0: 1 of 2 predicted and 1 of 2 true; of class 1: 1 of 2 and 1 of 1; of class 2: 1 of 1 and 1 of 2.
    assert float(finished(F1(), outputs, batch)) == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3, rel=1e-12)
    batch, outputs = classified(torch.eye(4)[truth], truth)
    assert float(finished(F1(), outputs, batch)) == 1.0
    batch, outputs = classified(torch.eye(4)[[3, 3]], [0, 1])
    assert float(finished(F1(), outputs, batch)) == 0.0


def test_f1_counts_tokens() -> None:
    case = make_case("lm")
    batch, outputs = case.batch(case.everything())
    pairs = [(int(p.argmax()), truth) for n in range(4) for p, truth in rows_of(case, n)]
    scores = []
    for c in {c for pair in pairs for c in pair}:
        hits = sum(chosen == truth == c for chosen, truth in pairs)
        scores.append(2 * hits / sum((chosen == c) + (truth == c) for chosen, truth in pairs))
    assert float(finished(F1(), outputs, batch)) == pytest.approx(mean(scores), rel=1e-6)


def test_exact_match_is_all_or_nothing() -> None:
    case = make_case("lm")
    for n in (1, 2):  # these two examples are predicted right, save for one token of the second
        for t in range(1, len(case.ids[n])):
            case.logits[n][t - 1, case.ids[n][t]] = 50.0
    case.logits[2][4, (case.ids[2][5] + 1) % CLASSES] = 60.0
    case.logits[0][3, (case.ids[0][4] + 1) % CLASSES] = 60.0
    case.logits[3][0, (case.ids[3][1] + 1) % CLASSES] = 60.0
    batch, outputs = case.batch(case.everything())
    assert ExactMatch().per_example(outputs, batch, None).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_exact_match_of_a_classifier_is_its_accuracy() -> None:
    case = make_case("classifier")
    batch, outputs = case.batch(case.everything())
    exact, accuracy = (term.per_example(outputs, batch, None) for term in (ExactMatch(), Accuracy()))
    torch.testing.assert_close(exact, accuracy)


@pytest.mark.parametrize(
    ("layers", "count", "wanted"),
    [
        ("middle", 24, (11,)),
        ("middle", 5, (2,)),
        ("middle", 1, (0,)),
        ([0, 1.0, 0.25], 12, (0, 2, 11)),
        ([1, 1], 3, (1,)),
        ([0.1, 0.7], 10, (0, 6)),
    ],
)
def test_layers_by_index_and_by_depth(layers: object, count: int, wanted: tuple[int, ...]) -> None:
    assert HiddenAlignment(HiddenAlignmentConfig(layers=layers)).layers(count) == wanted


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="names layer 12, and the model has 12 layers, 0 to 11"):
        HiddenAlignment(HiddenAlignmentConfig(layers=[3, 12])).layers(12)


@both
def test_hidden_alignment_is_the_mean_over_what_is_attended_to(kind: str) -> None:
    case, expert = make_case(kind), make_case(kind, seed=1)
    batch, outputs = case.batch([2, 0, 1], extra=1)
    hidden = {layer: torch.cat([expert.hidden[p][layer] for p in (2, 0, 1)]) for layer in (0, 2)}
    teacher = TeacherBatch(torch.zeros(3, 1), None, torch.zeros(3, dtype=torch.int64), hidden=hidden)
    wanted = [float((case.hidden[p][[0, 2]] - expert.hidden[p][[0, 2]]).square().mean()) for p in (2, 0, 1)]
    term = HiddenAlignment(HiddenAlignmentConfig(layers=[0, 1.0]))
    assert term.layers(3) == (0, 2)
    torch.testing.assert_close(term.per_example(outputs, batch, teacher), torch.tensor(wanted))


def test_hidden_alignment_does_not_look_at_padding() -> None:
    case = make_case("lm")
    batch, outputs = case.batch([1, 2])
    states = outputs.hidden[0].masked_fill(batch.inputs["attention_mask"][..., None] == 0, math.nan).requires_grad_()
    known = {0: torch.cat([case.hidden[p][0] for p in (1, 2)])}
    teacher = TeacherBatch(torch.zeros(2, 1), None, torch.zeros(2, dtype=torch.int64), hidden=known)
    got = HiddenAlignment(HiddenAlignmentConfig(layers=[0])).per_example(
        Outputs(outputs.logits, {0: states}), batch, teacher
    )
    assert got.tolist() == [0.0, 0.0]
    got.sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert not bool(states.grad.any())
