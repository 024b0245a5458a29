"""STAR, Iso-CTS, Decom-Renorm-Merge, OPCM and TSV-M's ranks: published properties."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optmerge.config.methods import (
    DrmConfig,
    IsoCConfig,
    IsoCtsConfig,
    MethodSettings,
    OpcmConfig,
    StarConfig,
    TsvMConfig,
)
from optmerge.errors import ConfigError
from optmerge.merging.methods import TensorKind, build_method
from optmerge.merging.methods.common_space import iso_cts, ranks
from optmerge.merging.methods.decomposed import decomposed_parts
from optmerge.merging.methods.fold import projected
from optmerge.merging.methods.spectrum import truncate_spectrum
from tests.merging.methods.toy import merged_vectors, of_deltas, prepared, random

Merge = Callable[..., torch.Tensor]
MLP = TensorKind("mlp", False, (9, 6))


def deltas(count: int, *shape: int, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [random(generator, *shape) for _ in range(count)]


def orthogonal(size: int, seed: int = 5) -> torch.Tensor:
    basis: torch.Tensor = torch.linalg.qr(deltas(1, size, size, seed=seed)[0]).Q
    return basis


def low_rank(count: int, rank: int, rows: int, columns: int) -> list[torch.Tensor]:
    lefts, rights = deltas(count, rows, rank, seed=7), deltas(count, rank, columns, seed=8)
    return [left @ right for left, right in zip(lefts, rights, strict=True)]


def merged(
    config: type[MethodSettings], values: list[torch.Tensor], kind: TensorKind | None = None, **given: Any
) -> torch.Tensor:
    return merged_vectors(config.model_validate(given), values, kind)


star = partial(merged, StarConfig)
cts = partial(merged, IsoCtsConfig)
drm = partial(merged, DrmConfig)
opcm = partial(merged, OpcmConfig)
tsv_m = partial(merged, TsvMConfig)
iso_c = partial(merged, IsoCConfig)
ALL: list[Any] = [star, cts, drm, opcm]
every = pytest.mark.parametrize("merge", ALL, ids=["star", "iso-cts", "drm", "opcm"])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.linalg.norm(found - expected) / torch.linalg.norm(expected))


# ---- all of them


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_and_sign_equivariant(merge: Merge, dtype: torch.dtype) -> None:
    matrices = [matrix.to(dtype) for matrix in deltas(3, 9, 6)]
    expected = merge(matrices)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(merge([4 * m for m in matrices]), 4 * expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merge([-m for m in matrices]), -expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", [star, cts, drm, partial(drm, direction="vertical")])
def test_the_order_of_experts_does_not_matter(merge: Merge) -> None:
    matrices = deltas(3, 9, 6)
    torch.testing.assert_close(merge(matrices[::-1]), merge(matrices))


@pytest.mark.parametrize("merge", [star, cts, opcm, partial(star, share=0.9), partial(cts, common=0.5)])
def test_equivariant_under_rotations(merge: Merge) -> None:
    matrices, left, right = deltas(3, 9, 6), orthogonal(9), orthogonal(6)
    torch.testing.assert_close(merge([left @ m @ right for m in matrices]), left @ merge(matrices) @ right)


@every
def test_rank_deficient_experts_are_stable(merge: Merge) -> None:
    matrices = low_rank(3, 2, 20, 14)
    noisy = [m + 1e-12 * noise for m, noise in zip(matrices, deltas(3, 20, 14, seed=9), strict=True)]
    expected = merge(matrices)
    assert torch.linalg.norm(expected) > 1
    assert relative(merge(noisy), expected) < 1e-8


@pytest.mark.parametrize("merge", [*ALL, tsv_m, partial(cts, common=0.5), partial(drm, direction="vertical")])
def test_signs_of_singular_vectors_do_not_matter(merge: Merge, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = deltas(3, 9, 6)
    expected, plain, flips = merge(matrices), torch.linalg.svd, torch.Generator().manual_seed(0)

    def flipped(matrix: torch.Tensor, full_matrices: bool = True) -> tuple[torch.Tensor, ...]:
        u, sigma, vh = plain(matrix, full_matrices=full_matrices)
        signs = random(flips, len(sigma)).sign()
        return u * signs, sigma, signs[:, None] * vh

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    torch.testing.assert_close(merge(matrices), expected)


@pytest.mark.parametrize("merge", [partial(cts, common=0.5), partial(cts, common=1.0), partial(tsv_m, ranks=2.0)])
def test_what_an_expert_has_not_is_not_made_up(merge: Merge) -> None:
    # Copies of an expert of rank 2 have nothing of their own: what their common space leaves is rounding noise.
    (matrix,) = low_rank(1, 2, 20, 14)
    result = merge([matrix, matrix, matrix])
    assert torch.linalg.matrix_rank(result) == 2
    u, _, vh = torch.linalg.svd(matrix)
    torch.testing.assert_close(u[:, :2] @ (u[:, :2].mT @ result @ vh[:2].mT) @ vh[:2], result)


@pytest.mark.parametrize(("merge", "factor"), [(star, 1 / 4), (cts, 1 / 4), (drm, None), (opcm, None)])
def test_vectors_by_the_rule_and_zero_stays_zero(merge: Merge, factor: float | None) -> None:
    vectors = deltas(4, 8)
    total = torch.stack(vectors).sum(0)
    if factor is not None:
        torch.testing.assert_close(merge(vectors), factor * total)
        torch.testing.assert_close(merge(vectors, others="sum"), total)
    assert not merge(vectors, others="base").any()
    assert not merge([torch.zeros(6, 4), torch.zeros(6, 4)]).any()


@every
def test_embeddings_and_heads_by_the_rule(merge: Merge) -> None:
    matrices = deltas(2, 8, 5)
    inside = merge(matrices, TensorKind("mlp", False, (8, 5)))
    for role in ("embedding", "head"):
        kind = TensorKind(role, False, (8, 5))
        torch.testing.assert_close(merge(matrices, kind, embeddings="matrix"), inside)
        plain = merge(matrices, kind, embeddings="mean")
        assert relative(plain, torch.linalg.norm(plain) * sum(matrices) / torch.linalg.norm(sum(matrices))) < 1e-6


@pytest.mark.parametrize("merge", [*ALL, partial(drm, direction="vertical")])
def test_stacks_matrix_by_matrix_and_convolutions_as_one(merge: Merge) -> None:
    stacks = deltas(2, 4, 6, 5)
    stacks[0][1] = stacks[1][1] = 0  # an expert that was never routed to
    kind = TensorKind("mlp", False, (4, 6, 5))
    result = merge(stacks, kind)
    if merge is opcm:  # the division is by a norm over the whole model
        one_by_one = torch.stack([merge([stack[i] for stack in stacks]) for i in range(4)])
        for index in (0, 2, 3):
            scale = torch.linalg.norm(result[index]) / torch.linalg.norm(one_by_one[index])
            torch.testing.assert_close(result[index], scale * one_by_one[index])
    else:
        torch.testing.assert_close(result, torch.stack([merge([stack[i] for stack in stacks]) for i in range(4)]))
    assert not result[1].any()
    kernels = deltas(2, 6, 3, 2, 2)
    expected = merge([kernel.flatten(1) for kernel in kernels]).reshape(6, 3, 2, 2)
    torch.testing.assert_close(merge(kernels, TensorKind("other", False, (6, 3, 2, 2))), expected)


@pytest.mark.parametrize("merge", [*ALL, partial(drm, direction="vertical")])
@pytest.mark.parametrize("shape", [(9, 6), (4, 9, 6)])
def test_layers_stored_input_first_mean_the_same(merge: Merge, shape: tuple[int, ...]) -> None:
    matrices = deltas(3, *shape)
    plain = merge(matrices, TensorKind("mlp", False, shape))
    turned = merge([m.mT.contiguous() for m in matrices], TensorKind("mlp", True, (*shape[:-2], 6, 9)))
    torch.testing.assert_close(turned, plain.mT)


@pytest.mark.parametrize("config", [StarConfig, IsoCtsConfig, DrmConfig])
def test_a_weight_for_an_unknown_expert(config: type[MethodSettings]) -> None:
    with pytest.raises(ConfigError, match=r"weights\.medicin: .*law, medicine.*Did you mean 'medicine'"):
        build_method(config.model_validate({"weights": {"medicin": 1.0}}), ("law", "medicine"))  # type: ignore[arg-type]


# ---- STAR (Lee et al. 2025)


@settings(deadline=None, max_examples=30)
@given(share=st.floats(0.01, 1.0), seed=st.integers(0, 999), rows=st.integers(2, 9), columns=st.integers(2, 9))
def test_star_keeps_the_nuclear_norm_in_the_fewest_components(share: float, seed: int, rows: int, columns: int) -> None:
    (matrix,) = deltas(1, rows, columns, seed=seed)
    sigma = torch.linalg.svdvals(matrix)
    found = torch.linalg.svdvals(truncate_spectrum(matrix, share=share, tolerance=0.0))
    rank = int((found > 1e-9 * found[0]).sum())
    torch.testing.assert_close(found.sum(), sigma.sum())
    assert sigma[:rank].sum() >= share * sigma.sum() * (1 - 1e-12)
    assert sigma[: rank - 1].sum() < share * sigma.sum()
    torch.testing.assert_close(found[:rank] / sigma[:rank], (sigma.sum() / sigma[:rank].sum()).expand(rank))


def test_star_with_everything_kept_is_the_mean() -> None:
    matrices = deltas(3, 9, 6)
    torch.testing.assert_close(star(matrices, share=1.0), torch.stack(matrices).mean(0))
    weighted = star(matrices, share=1.0, weights={"expert-0": 2.0, "expert-2": -1.0})
    torch.testing.assert_close(weighted, (2 * matrices[0] + matrices[1] - matrices[2]) / 3)


def test_star_of_one_expert_is_not_the_expert_and_is_larger() -> None:
    (matrix,) = deltas(1, 40, 30)
    norms = [float(torch.linalg.norm(star([matrix], share=share))) for share in (0.2, 0.4, 0.7, 1.0)]
    assert norms == sorted(norms, reverse=True)
    assert norms[0] > 2 * norms[-1]
    torch.testing.assert_close(norms[-1], float(torch.linalg.norm(matrix)))


# ---- Iso-CTS (Marczak et al. 2025)


def test_iso_cts_with_everything_common_is_iso_c() -> None:
    matrices = deltas(3, 9, 6)
    torch.testing.assert_close(cts(matrices, common=1.0), iso_c(matrices))
    torch.testing.assert_close(cts(low_rank(2, 1, 9, 6), common=1.0), iso_c(low_rank(2, 1, 9, 6)))


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (6, 6)])
@pytest.mark.parametrize("common", [0.0, 0.5, 0.8])
def test_iso_cts_has_a_flat_spectrum(shape: tuple[int, int], common: float) -> None:
    sigma = torch.linalg.svdvals(cts(deltas(3, *shape), common=common))
    torch.testing.assert_close(sigma, sigma[:1].expand(len(sigma)))


@settings(deadline=None)
@given(rank=st.integers(1, 60), experts=st.integers(1, 70), common=st.floats(0, 1))
def test_ranks_are_shared_out(rank: int, experts: int, common: float) -> None:
    shared, own = ranks(rank, experts, common)
    assert shared >= 0
    assert own >= 0
    assert shared + experts * own == rank


def test_ranks_as_published() -> None:
    assert ranks(30, 4, 0.8) == (22, 2)  # rounding leaves fewer common ones than asked for
    assert ranks(768, 8, 0.8) == (616, 19)
    assert ranks(30, 4, 1.0) == (30, 0)


def test_iso_cts_keeps_what_only_one_expert_has() -> None:
    # One expert is ten times larger: at two ranks of four, Iso-C's common space holds nothing of the small one.
    left, right = orthogonal(6), orthogonal(5)
    large = 10 * left[:, :2] @ right[:2]
    small = left[:, 2:4] @ right[2:4]
    result = iso_cts([large, small], common=0.5, tolerance=1e-6)
    kept = left[:, 2:4].mT @ result @ right[2:4].mT
    torch.testing.assert_close(kept, kept[0, 0] * torch.eye(2, dtype=torch.float64), atol=1e-9, rtol=1e-9)
    assert kept[0, 0] > 1


def test_iso_cts_weighs_task_vectors_first() -> None:
    matrices = deltas(2, 9, 6)
    torch.testing.assert_close(cts(matrices, weights={"expert-1": 3.0}), cts([matrices[0], 3 * matrices[1]]))


# ---- Decom-Renorm-Merge (Chaichana et al. 2025)

whole_drm = partial(drm, drop=0.0, tolerance=0.0)
both_directions = pytest.mark.parametrize("direction", ["horizontal", "vertical"])


@both_directions
@pytest.mark.parametrize("count", [1, 2, 5])
def test_drm_of_copies_is_the_expert_if_nothing_is_dropped(direction: str, count: int) -> None:
    (matrix,) = deltas(1, 9, 6)
    torch.testing.assert_close(whole_drm([matrix] * count, direction=direction), matrix)


def test_drm_vertical_is_horizontal_of_transposes() -> None:
    matrices = deltas(3, 9, 6)
    vertical = drm(matrices, direction="vertical")
    torch.testing.assert_close(vertical, drm([m.mT for m in matrices]).mT)
    assert relative(vertical, drm(matrices)) > 0.1


def test_drm_is_equivariant_where_its_basis_is_shared() -> None:
    matrices, left, right = deltas(3, 9, 6), orthogonal(9), orthogonal(6)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    torch.testing.assert_close(drm([left @ m for m in matrices]), left @ drm(matrices))
    torch.testing.assert_close(drm([m[:, order] for m in matrices]), drm(matrices)[:, order])
    assert relative(drm([m @ right for m in matrices]), drm(matrices) @ right) > 0.1


def test_drm_in_closed_form() -> None:
    # The rows of both experts together are orthogonal, so that the shared basis is that of the outputs as they are.
    first = torch.tensor([[8.0, 6.0, 0.0], [0.0, 0.0, 0.3]]).double()
    second = torch.tensor([[8.0, -5.0, 0.0], [0.0, 0.0, 0.4]]).double()
    expected = torch.tensor([[8.0, 6.0, 0.0], [0.0, 0.0, 0.35]]).double()
    torch.testing.assert_close(whole_drm([first, second]), expected)
    # Of the unit rows (.8 .6 0), (0 0 1) and (.85 -.53 0), (0 0 1) the weak ones are dropped last.
    expected[0, 1] = 0
    torch.testing.assert_close(drm([first, second], drop=8 / 12), expected)
    expected[0, 0] = 0
    torch.testing.assert_close(drm([first, second], drop=10 / 12), expected)
    assert not drm([first, second], drop=1.0).any()


@settings(deadline=None, max_examples=30)
@given(drop=st.floats(0, 1), seed=st.integers(0, 99))
def test_drm_drops_exactly_as_many_coordinates_as_asked_for(drop: float, seed: int) -> None:
    (matrix,) = deltas(1, 5, 4, seed=seed)
    u = torch.linalg.svd(matrix, full_matrices=False).U
    (part,) = decomposed_parts([matrix], drop=drop, tolerance=0.0)
    assert int(((u.mT @ part).abs() > 1e-9).sum()) == int((1 - drop) * 16 + 0.5)


def test_drm_cuts_weak_directions() -> None:
    strong, weak = low_rank(2, 1, 9, 6)
    torch.testing.assert_close(drm([strong + 1e-3 * weak], drop=0.0, tolerance=1e-2), strong, rtol=1e-2, atol=1e-2)
    assert torch.linalg.matrix_rank(drm([strong + 1e-3 * weak], drop=0.0)) == 1
    torch.testing.assert_close(whole_drm([strong + 1e-3 * weak]), strong + 1e-3 * weak)


def test_drm_does_not_divide_by_weights() -> None:
    matrices = deltas(2, 9, 6)
    torch.testing.assert_close(drm(matrices, weights={"expert-0": 2.0, "expert-1": 2.0}), 2 * drm(matrices))


def test_drm_gives_what_is_no_matrix_the_elected_mean() -> None:
    vectors = [torch.tensor([1.0, 2.0, -3.0]), torch.tensor([3.0, -1.0, -1.0]), torch.tensor([0.0, -1.0, 1.0])]
    torch.testing.assert_close(drm(vectors), torch.tensor([2.0, 0.0, -2.0]))
    head = TensorKind("head", False, (2, 3))
    heads = [vector.expand(2, 3).contiguous() for vector in vectors]
    torch.testing.assert_close(drm(heads, head), torch.tensor([2.0, 0.0, -2.0]).expand(2, 3))
    torch.testing.assert_close(drm(heads, head, embeddings="sum"), sum(heads))


# ---- OPCM (Tang et al. 2025)


@settings(deadline=None, max_examples=30)
@given(share=st.floats(0, 0.99), seed=st.integers(0, 999), rank=st.integers(1, 5))
def test_a_projection_is_orthogonal_to_the_merge_and_leaves_its_leading_directions(
    share: float, seed: int, rank: int
) -> None:
    (delta,) = deltas(1, 8, 5, seed=seed)
    so_far = deltas(1, 8, rank, seed=seed + 1)[0] @ deltas(1, rank, 5, seed=seed + 2)[0]
    found = projected(delta, so_far, share=share, tolerance=1e-9)
    u, sigma, vh = torch.linalg.svd(so_far)  # whole bases: the definition
    coordinates = u.mT @ delta @ vh.mT
    coordinates.diagonal()[:rank] = 0
    leading = int((sigma.cumsum(0)[:rank] <= share * sigma.sum()).sum())
    coordinates[:leading, :leading] = 0
    torch.testing.assert_close(found, u @ coordinates @ vh)
    assert abs(float((found * so_far).sum())) < 1e-9


def test_opcm_of_one_expert_or_of_copies_is_the_expert() -> None:
    (matrix,) = deltas(1, 9, 6)
    for count in (1, 2, 5):
        torch.testing.assert_close(opcm([matrix] * count), matrix)


def test_opcm_has_the_mean_norm_over_the_whole_model() -> None:
    generator = torch.Generator().manual_seed(2)
    experts = [
        {"w": random(generator, 9, 6), "v": 3 * random(generator, 7), "e": random(generator, 8, 4)} for _ in range(4)
    ]
    kinds = {"w": MLP, "v": TensorKind("norm", False, (7,)), "e": TensorKind("embedding", False, (8, 4))}
    models = of_deltas(experts, kinds=kinds)
    method = build_method(OpcmConfig(), models.experts)
    seen: list[int] = []
    method.prepare(models, lambda what, done, of: seen.append(done))
    assert seen == [1, 2, 3]
    found = {name: method.delta(models, name) for name in models.names}
    whole = torch.cat([value.flatten() for value in found.values()])
    norms = [torch.cat([value.flatten() for value in expert.values()]).norm() for expert in experts]
    torch.testing.assert_close(whole.norm(), torch.stack(norms).mean())
    for name in ("v", "e"):  # what is added up ends at the sum divided by lambda
        total = torch.stack([expert[name] for expert in experts]).sum(0)
        torch.testing.assert_close(found[name] / found["v"].norm(), total / sum(e["v"] for e in experts).norm())  # type: ignore[union-attr]


def test_opcm_of_unrelated_experts_divides_by_about_the_root_of_their_number() -> None:
    matrices = deltas(8, 40, 30)
    bias = [torch.full((1,), 1e-9).double()] * 8
    models = of_deltas([{"w": w, "b": b} for w, b in zip(matrices, bias, strict=True)])
    method = prepared(OpcmConfig(), models)
    scale = 8e-9 / float(method.delta(models, "b"))  # lambda_T
    assert scale == pytest.approx(8**0.5, rel=0.1)


def test_opcm_depends_on_the_order_which_is_a_setting() -> None:
    matrices = deltas(3, 9, 6)
    names = ["expert-2", "expert-0", "expert-1"]
    ordered = opcm(matrices, order=names)
    torch.testing.assert_close(ordered, opcm([matrices[2], matrices[0], matrices[1]]))
    assert 0.01 < relative(ordered, opcm(matrices)) < 1


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["law", "medicin"], r"no expert medicin.*law, medicine.*Did you mean 'medicine'"),
        (["law"], r"order is law, with medicine missing"),
        (["law", "medicine", "law"], r"with some more than once"),
    ],
)
def test_an_order_of_other_experts(order: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_method(OpcmConfig(order=order), ("law", "medicine"))


# ---- TSV-M's ranks


def test_tsv_m_with_fewer_ranks_keeps_less_of_each() -> None:
    matrices = deltas(2, 12, 8)
    assert torch.linalg.matrix_rank(tsv_m(matrices, ranks=0.5)) == 4
    assert torch.linalg.matrix_rank(tsv_m(matrices)) == 8
    assert torch.linalg.matrix_rank(tsv_m(matrices, ranks=0.01)) == 2  # at least one each
    (one,) = deltas(1, 12, 8)
    torch.testing.assert_close(tsv_m([one], ranks=2.0), one)


def test_tsv_m_of_orthogonal_experts_is_their_sum_at_more_ranks_too() -> None:
    left, right = orthogonal(12), orthogonal(9)
    matrices = [
        left[:, 3 * i : 3 * i + 3] @ torch.diag(torch.tensor([3.0, 2.0, 1.0]).double()) @ right[3 * i : 3 * i + 3]
        for i in range(3)
    ]
    torch.testing.assert_close(tsv_m(matrices, ranks=3.0), sum(matrices))
