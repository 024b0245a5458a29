"""A method of the user's own: what it is given, what is made of it, and what is told when something is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optmerge.config.methods import METHOD_CONFIGS, CustomMethodConfig, Searched
from optmerge.config.methods.own import content_of, declared, title, told_settings
from optmerge.errors import ConfigError
from optmerge.merging.methods import build_method, vectors
from optmerge.merging.methods.base import Method
from optmerge.merging.methods.own import PartsMethod
from tests.merging.methods.toy import KINDS, ToyModels, every_kind, of_deltas, prepared

GUIDE = Path(__file__).parents[3] / "docs" / "own-method.md"
HEAD = """
import torch
from optmerge.config.methods import Searched
from optmerge.merging.methods.own import PartsMethod, WholeMethod

"""
SUM = """class Sum(PartsMethod):
    sees = {sees!r}

    def parts(self, vectors, kind):
        return vectors
"""
LARGEST = """class Largest(WholeMethod):
    sees = {sees!r}

    def __init__(self, factor=1.0):
        self.factor = factor

    def merged(self, vectors, kind):
        stacked = torch.stack(vectors)
        at = stacked.abs().argmax(0, keepdim=True)
        return self.factor * stacked.gather(0, at)[0]
"""
FLAT = """class Flat(WholeMethod):
    sees = "matrix"

    def merged(self, vectors, kind):
        assert all(vector.dim() == 2 for vector in vectors), vectors[0].shape
        rows = sum(vectors).norm(dim=1, keepdim=True)
        return sum(vectors) / rows.clamp(min=1e-12)
"""


def guide_example() -> str:
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    return found.group(1)


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(HEAD + text)
    return path


def own(folder: Path, text: str, models: ToyModels, **settings: object) -> Method:
    path = write(folder, text)
    name = re.search(r"class (\w+)", text)
    assert name is not None
    config = CustomMethodConfig.model_validate({"path": f"{path}:{name[1]}", **settings})
    built = prepared(config, models)
    return built


def largest(deltas: list[torch.Tensor]) -> torch.Tensor:
    stacked = torch.stack(deltas)
    return stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0]


def test_the_guides_example_is_short_and_right(tmp_path: Path) -> None:
    source = guide_example()
    assert len(source.splitlines()) <= 25
    (tmp_path / "my_methods.py").write_text(source)
    models = every_kind(3)
    config = CustomMethodConfig(path=f"{tmp_path}/my_methods.py:Shrunk", settings={"share": 1.0})
    method = build_method(config, models.experts)
    assert method.linear
    for name in models.names:
        vectors_of = [models.task_vector(expert, name) for expert in models.experts]
        expected = [
            torch.nn.functional.softshrink(vector, float(vector.abs().mean())) if vector.numel() else vector
            for vector in vectors_of
        ]
        for part, wanted in zip(method.expert_deltas(models, name), expected, strict=True):
            torch.testing.assert_close(part, wanted)
        torch.testing.assert_close(method.delta(models, name), sum(expected[1:], expected[0]))
    assert declared(config.path, Path()) == {"share": Searched(0.0, 2.0, grid=(0.0, 0.5, 1.0))}


@pytest.mark.parametrize("sees", ["entries", "tensor", "matrix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_sum_of_task_vectors_is_one_over_every_kind_of_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sees: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(vectors, "CHUNK", 16)
    models = every_kind(3, dtype=dtype)
    method = own(tmp_path, SUM.format(sees=sees), models, others="sum")
    for name in models.names:
        expected = [models.task_vector(expert, name) for expert in models.experts]
        for part, wanted in zip(method.expert_deltas(models, name), expected, strict=True):
            assert part.dtype == wanted.dtype
            assert part.is_contiguous()
            assert torch.equal(part, wanted), name
        assert torch.equal(method.delta(models, name), expected[0] + expected[1] + expected[2])


@pytest.mark.parametrize("sees", ["entries", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_whole_method_is_what_its_class_gives(tmp_path: Path, sees: str, dtype: torch.dtype) -> None:
    models = every_kind(3, dtype=dtype)
    method = own(tmp_path, LARGEST.format(sees=sees), models, settings={"factor": -2.0})
    assert not method.linear
    for name in models.names:
        expected = -2.0 * largest([models.task_vector(expert, name) for expert in models.experts])
        assert torch.equal(method.delta(models, name), expected), name
    with pytest.raises(NotImplementedError):
        method.expert_deltas(models, "norm.weight")


def test_a_method_of_matrices_sees_outputs_in_rows_and_nothing_else(tmp_path: Path) -> None:
    models = every_kind(2)
    method = own(tmp_path, FLAT, models, others="base", embeddings="mean")
    for name, kind in KINDS.items():
        delta = method.delta(models, name)
        total = models.task_vector("expert-0", name) + models.task_vector("expert-1", name)
        if kind.structure == "vector":
            assert not delta.any(), name
        elif kind.role in ("embedding", "head"):
            torch.testing.assert_close(delta, total / 2)
        else:
            rows = (delta.mT if kind.input_first else delta).flatten(2 if kind.structure == "stack" else 1)
            torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1]))
            cosine = torch.nn.functional.cosine_similarity(
                rows, (total.mT if kind.input_first else total).reshape(rows.shape), dim=-1
            )
            torch.testing.assert_close(cosine, torch.ones_like(cosine))


@given(values=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40), limit=st.integers(1, 50))
def test_pieces_make_no_difference_to_a_rule_of_entries(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], limit: int
) -> None:
    vector = torch.tensor(values)
    models = of_deltas([{"w": vector}, {"w": vector.flip(0)}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "CHUNK", limit)
        method = own(tmp_path_factory.mktemp("own"), LARGEST.format(sees="entries"), models)
        assert torch.equal(method.delta(models, "w"), largest([vector, vector.flip(0)]))


def test_what_no_expert_changed_is_not_asked_about(tmp_path: Path) -> None:
    """A class that divides by what it is given has no trouble with frozen tensors."""
    text = """class Unit(PartsMethod):
    def parts(self, vectors, kind):
        return [vector / sum(v.norm() for v in vectors) for vector in vectors]
"""
    models = of_deltas([{"w": torch.zeros(3), "v": torch.ones(4)}, {"w": torch.zeros(3), "v": torch.zeros(4)}])
    method = own(tmp_path, text, models)
    assert not method.delta(models, "w").any()
    torch.testing.assert_close(method.delta(models, "v"), torch.full((4,), 0.5))


def test_one_tensor_for_several_experts_is_added_as_often(tmp_path: Path) -> None:
    text = """class Same(PartsMethod):
    def parts(self, vectors, kind):
        mean = sum(vectors) / len(vectors)
        return [mean.expand_as(mean)] * len(vectors)
"""
    models = of_deltas([{"w": torch.full((2,), float(value))} for value in (1, 2, 6)])
    assert own(tmp_path, text, models).delta(models, "w").tolist() == [9.0, 9.0]


def test_what_a_delta_depends_on(tmp_path: Path) -> None:
    path = write(tmp_path, SUM.format(sees="entries"))
    config = CustomMethodConfig(path=f"{path}:Sum", settings={"a": 1})
    before = content_of(config)
    (tmp_path / "other").mkdir()
    moved = CustomMethodConfig(path=f"{write(tmp_path / 'other', SUM.format(sees='entries'))}:Sum", settings={"a": 1})
    assert content_of(moved) == before
    path.write_text(path.read_text() + "# changed\n")
    assert content_of(config) != before
    assert title(config) == "Sum"
    assert told_settings(config)["a"] == 1
    for name, model in METHOD_CONFIGS.items():
        assert title(model()) == name
        assert content_of(model()) == model().model_dump()


def test_a_recipe_with_another_file_is_refused(tmp_path: Path) -> None:
    models = every_kind(2)
    path = write(tmp_path, SUM.format(sees="entries"))
    digest = CustomMethodConfig(path=f"{path}:Sum").content
    own(tmp_path, SUM.format(sees="entries"), models, sha256=digest)
    with pytest.raises(ConfigError, match=r"not the file that the recipe was made with: its hash is .*\.\.\."):
        own(tmp_path, SUM.format(sees="tensor"), models, sha256=digest)


PART = "class Part(PartsMethod):\n"
BODY = "    def parts(self, vectors, kind):\n        return vectors\n"


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("x = 1\n", {}, ["no class 'Part'; it has no method at all"]),
        (PART.replace("Part(", "Prt(") + BODY, {}, ["it has Prt", "Did you mean 'Prt'"]),
        ("class Part: pass\n", {}, ["is no method: expected a subclass of PartsMethod or WholeMethod"]),
        ("import no_such_module\n", {}, ["the file of the custom method, cannot be run: ModuleNotFoundError"]),
        (
            "import sys\nsys.exit(0)\n",
            {},
            ["the file of the custom method, cannot be run: SystemExit: 0 (mine.py, line"],
        ),
        (
            PART + "    tuned = {'a': Searched(0, 1, log=True)}\n" + BODY,
            {},
            ["cannot be run: ValueError: Searched(low=0, high=1, log=True", "low must be above 0", "(mine.py, line"],
        ),
        (PART + "    tuned = {'a': Searched(1, 0)}\n" + BODY, {}, ["no range of numbers; expected low < high"]),
        (PART + "    tuned = {'a': Searched('0', '1')}\n" + BODY, {}, ["no range of numbers; expected low < high"]),
        (PART + "    pass\n", {}, ["is a PartsMethod without parts"]),
        (
            PART + "    sees = 'matrx'\n" + BODY,
            {},
            ["sees = 'matrx'; expected one of entries", "Did you mean 'matrix'"],
        ),
        (PART + "    tuned = 3\n" + BODY, {}, ["tuned = 3; expected a dict", "sees, tuned"]),
        (PART + "    tuned = {'a': Searched(0, 1)}\n" + BODY, {}, ["for a setting, which are none"]),
        (PART + BODY, {"a": 1}, ["cannot be made with the settings {'a': 1}", "Settings are the keyword arguments"]),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    tmp_path: Path, text: str, settings: Mapping[str, object], words: list[str]
) -> None:
    config = CustomMethodConfig(path=f"{write(tmp_path, text)}:Part", settings=dict(settings))
    with pytest.raises(ConfigError) as caught:
        build_method(config, ["a", "b"])
    for word in words:
        assert word in str(caught.value)


def test_the_names_of_optmerge_are_taken(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="called as something of optmerge is"):
        own(tmp_path, PART.replace("Part(", "ties(") + BODY, every_kind(2))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ("vectors[:1]", r"a list of 1 \(a tensor \[6\] of float32, \.\.\.\).*a list of 2 float tensors \[6\]"),
        ("tuple(vectors)", "a tuple of 2"),
        ("vectors[0]", r"gives a tensor \[6\] of float32 for norm\.weight"),
        ("[v[:2] for v in vectors]", r"a list of 2 \(a tensor \[2\] of float32"),
        ("[v > 0 for v in vectors]", "of bool"),
        ("None", "a NoneType"),
        ("[v * float('inf') for v in vectors]", "that are not finite"),
        ("[v / none for v in vectors]", r"cannot be computed for norm\.weight: NameError.*\(mine\.py, line \d+\)"),
    ],
)
def test_what_is_wrong_with_a_result_is_told(tmp_path: Path, result: str, words: str) -> None:
    models = every_kind(2)
    method = own(tmp_path, PART + BODY.replace("return vectors", f"return {result}"), models)
    with pytest.raises(ConfigError, match=words):
        method.delta(models, "norm.weight")


def test_parts_is_what_a_class_must_write() -> None:
    assert PartsMethod.__abstractmethods__ == {"parts"}
