"""A term of the user's own: the example of the documentation, and what is told when something is wrong with a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from optmerge.config.objectives import CustomConfig, ObjectiveConfig
from optmerge.errors import ConfigError
from optmerge.objective import CoefficientTerm, ModelTerm, Objective, Outputs, WholeModelTerm, make_term
from optmerge.objective.custom import TERM, CustomTerm, load_term
from optmerge.own_code import file_hash

from .cases import make_case, make_geometry

GUIDE = Path(__file__).parents[2] / "docs" / "own-term.md"

CONSTANT = """
from optmerge.objective import ModelTerm

class Constant(ModelTerm):
    name = "constant"
    needs = frozenset()
    differentiable = False
    higher_is_better = False
    unit = "nothing"

    def __init__(self, value=1.0):
        super().__init__()
        self.number = value

    def per_example(self, outputs, batch, teacher):
        return outputs.logits.new_full((len(outputs.logits),), self.number)
"""
SIZE = """
from optmerge.objective import CoefficientTerm

class Size(CoefficientTerm):
    name = "my-size"
    differentiable = True
    unit = "coefficient"

    def value(self, coefficients, geometry):
        return coefficients.abs().mean()
"""
DEPTH = """
from optmerge.objective import WholeModelTerm

class Depth(WholeModelTerm):
    name = "depth"
    higher_is_better = True
    unit = "layers"

    def measure(self, model, split):
        return float(model.config.num_hidden_layers)
"""


def write(folder: Path, text: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def load(path: Path, name: str, settings: Mapping[str, object] | None = None) -> CustomTerm:
    return load_term(CustomConfig(path=f"{path}:{name}", settings=dict(settings or {})))


def guide_example() -> str:
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize("kind", ["classifier", "lm"])
def test_the_guides_example_is_short_and_right(tmp_path: Path, kind: str) -> None:
    source = guide_example()
    assert len(source.splitlines()) <= 25
    term = load(write(tmp_path, source), "Margin", {"wanted": 0.5})
    assert isinstance(term, ModelTerm)
    case = make_case(kind)
    batch, outputs = case.batch(case.everything())
    outputs.logits.requires_grad_(True)
    values = term.per_example(outputs, batch, None)
    for row in range(len(values)):
        alone, said = case.batch([row])
        logits = said.logits[0]
        if alone.scored is not None:
            logits = logits[alone.scored[0]]
        best = logits.reshape(-1, logits.shape[-1]).softmax(-1).sort(-1).values
        expected = (0.5 - (best[:, -1] - best[:, -2])).clamp(min=0).mean()
        assert float(values[row].detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    values.sum().backward()
    assert outputs.logits.grad is not None
    assert float(outputs.logits.grad.abs().sum()) > 0


def test_the_three_kinds_are_loaded_and_composed(tmp_path: Path) -> None:
    constant = load(write(tmp_path, CONSTANT), "Constant", {"value": 2.0})
    assert isinstance(constant, ModelTerm)
    assert (constant.name, constant.paper) == ("constant", "the user's own")
    size = load(write(tmp_path, SIZE, "size.py"), "Size")
    assert isinstance(size, CoefficientTerm)
    assert float(size.value(torch.full((2, 2), -0.5), make_geometry()[0])) == 0.5
    depth = load(write(tmp_path, DEPTH, "depth.py"), "Depth")
    assert isinstance(depth, WholeModelTerm)
    terms = [{"name": "custom", "path": f"{tmp_path}/{place}"} for place in ("mine.py:Constant", "size.py:Size")]
    objective = Objective(ObjectiveConfig.model_validate({"terms": terms}), ["a"], {"a": 3})
    assert [term.name for term in objective.terms] == ["constant"]
    assert [term.name for term in objective.regularisers] == ["my-size"]
    assert objective.without_gradient == ("constant",)
    assert objective.combine("fit", {"a": {"constant": 3.0}}, {"my-size": 0.5}) == (3.5, {"a": 3.0})


def test_a_file_runs_once_and_its_hash_follows_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    path = write(tmp_path, CONSTANT + f"\nwith open({str(log)!r}, 'a') as handle:\n    handle.write('run ')\n")
    config = CustomConfig(path=f"{path}:Constant")
    load_term(config)
    load_term(config)
    assert log.read_text() == "run "
    before = file_hash(config.path, TERM)
    path.write_text(path.read_text() + "# changed\n")
    load_term(config)
    assert log.read_text() == "run run "
    assert file_hash(config.path, TERM) != before


@pytest.mark.parametrize(
    ("text", "name", "settings", "words"),
    [
        (CONSTANT, "Constnat", {}, ["no class 'Constnat'; it has Constant", "Did you mean 'Constant'"]),
        ("x = 1\n", "Margin", {}, ["no class 'Margin'; it has no term at all"]),
        ("class Margin: pass\n", "Margin", {}, ["is no term", "subclass of ModelTerm, CoefficientTerm"]),
        ("Margin = 3\n", "Margin", {}, ["is no term"]),
        ("import no_such_module\n", "Margin", {}, ["cannot be run", "ModuleNotFoundError", "(mine.py, line 1)"]),
        ("def (\n", "Margin", {}, ["cannot be run", "SyntaxError"]),
        (CONSTANT, "Constant", {"valeu": 1}, ["{'valeu': 1}", "unexpected keyword argument", "Constant(value=1.0)"]),
        (
            CONSTANT.replace("super().__init__()", "raise ValueError('too big')"),
            "Constant",
            {},
            ["ValueError: too big (mine.py, line 12)"],
        ),
        (CONSTANT.replace('"constant"', '"entropy"'), "Constant", {}, ["'entropy', as a term of optmerge is"]),
        (
            CONSTANT.replace('    unit = "nothing"\n', ""),
            "Constant",
            {},
            ["unit = None; expected a text", "higher_is_"],
        ),
        (CONSTANT.replace("frozenset()", '{"labels"}'), "Constant", {}, ["needs = {'labels'}; expected a frozenset"]),
        (
            CONSTANT.replace("frozenset()", 'frozenset({"label"})'),
            "Constant",
            {},
            ["needs label; expected any of labels, teacher, hidden", "Did you mean 'labels'"],
        ),
        (CONSTANT.replace("def per_example", "def per_exmaple"), "Constant", {}, ["without per_example"]),
    ],
)
def test_what_is_wrong_with_a_file_is_told(
    tmp_path: Path, text: str, name: str, settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), name, settings)
    for word in words:
        assert word in str(caught.value)


def test_missing_files_and_malformed_paths(tmp_path: Path) -> None:
    write(tmp_path, CONSTANT, "my_terms.py")
    with pytest.raises(ConfigError, match=r"no file .*my_term\.py.*Did you mean 'my_terms\.py'"):
        load(tmp_path / "my_term.py", "Constant")
    for text in ("my_terms:Constant", "my_terms.py", "my_terms.py:", "my_terms.py:a b"):
        with pytest.raises(ConfigError, match=r"expected FILE\.py:CLASS"):
            load_term(CustomConfig(path=text))


@pytest.mark.parametrize(
    ("result", "word"),
    [
        ("outputs.logits", r"a tensor \[4, 7\] of float32 for a batch of 4 examples; expected a float tensor \[4\]"),
        ("outputs.logits.sum()", r"a tensor \[\] of float32"),
        ("outputs.logits.argmax(-1)", r"a tensor \[4\] of int64"),
        ("None", "a NoneType"),
    ],
)
def test_values_of_another_shape_are_refused(tmp_path: Path, result: str, word: str) -> None:
    source = re.sub(r"return outputs\.logits\.new_full.*", f"return {result}", CONSTANT)
    term = load(write(tmp_path, source), "Constant")
    assert isinstance(term, ModelTerm)
    case = make_case("classifier")
    batch, outputs = case.batch(case.everything())
    with pytest.raises(ConfigError, match=word):
        term.per_example(outputs, batch, None)


def test_a_term_that_needs_values_where_there_are_none_is_told(tmp_path: Path) -> None:
    source = re.sub(
        r"return outputs\.logits\.new_full.*", "return outputs.logits[:, 0] * float(outputs.logits.sum())", CONSTANT
    )
    term = load(write(tmp_path, source), "Constant")
    assert isinstance(term, ModelTerm)
    case = make_case("classifier")
    batch, outputs = case.batch(case.everything())
    assert term.per_example(outputs, batch, None).shape == (4,)
    with pytest.raises(
        ConfigError, match=r"constant cannot be computed on shapes without values.*\(mine\.py, line 16\)\."
    ):
        term.per_example(Outputs(outputs.logits.to("meta")), batch, None)


def test_a_coefficient_term_gives_one_number(tmp_path: Path) -> None:
    term = load(write(tmp_path, SIZE.replace(".mean()", "")), "Size")
    assert isinstance(term, CoefficientTerm)
    with pytest.raises(ConfigError, match=r"my-size gives a tensor \[2, 2\] of float64; expected a tensor with one"):
        term.value(torch.zeros(2, 2, dtype=torch.float64), make_geometry()[0])


@pytest.mark.parametrize(
    ("result", "word"), [("None", "a NoneType"), ("'high'", "a str"), ("model.weight", r"a tensor \[2, 3\] of float32")]
)
def test_a_whole_model_term_gives_one_number(tmp_path: Path, result: str, word: str) -> None:
    source = DEPTH.replace("float(model.config.num_hidden_layers)", result)
    term = load(write(tmp_path, source), "Depth")
    assert isinstance(term, WholeModelTerm)
    with pytest.raises(ConfigError, match=f"depth gives {word}; expected a number"):
        term.measure(torch.nn.Linear(3, 2), "fit")


def test_a_mistake_in_the_code_is_told_where_memory_is_planned(tmp_path: Path) -> None:
    source = re.sub(r"return outputs\.logits\.new_full.*", "return outputs.logitz", CONSTANT)
    term = load(write(tmp_path, source), "Constant")
    assert isinstance(term, ModelTerm)
    case = make_case("classifier")
    batch, outputs = case.batch(case.everything())
    with pytest.raises(
        ConfigError, match=r"constant cannot be computed: AttributeError.*logitz.*\(mine\.py, line 16\)"
    ):
        term.per_example(Outputs(outputs.logits.to("meta")), batch, None)


def test_a_gradient_that_is_promised_and_not_there_is_told(tmp_path: Path) -> None:
    source = re.sub(r"return outputs\.logits\.new_full.*", "return outputs.logits.detach().amax(-1)", CONSTANT).replace(
        "differentiable = False", "differentiable = True"
    )
    term = load(write(tmp_path, source), "Constant")
    assert isinstance(term, ModelTerm)
    case = make_case("classifier")
    batch, outputs = case.batch(case.everything())
    wanted = Outputs(outputs.logits.detach().requires_grad_())
    with torch.no_grad():
        assert term.per_example(wanted, batch, None).shape == (4,)
    with pytest.raises(ConfigError, match="constant says that it is differentiable, and its values have no gradient"):
        term.per_example(wanted, batch, None)


@pytest.mark.parametrize(("layers", "word"), [("(4,)", r"\(4,\)"), ("1", "1"), ("()", r"\(\)")])
def test_layers_that_a_model_does_not_have_are_told(tmp_path: Path, layers: str, word: str) -> None:
    source = CONSTANT.replace("frozenset()", 'frozenset({"hidden"})')
    source += f"\n    def layers(self, count):\n        return {layers}\n"
    term = load(write(tmp_path, source), "Constant")
    assert isinstance(term, ModelTerm)
    with pytest.raises(ConfigError, match=f"constant names the layers {word} of 4; expected a tuple of numbers from 0"):
        term.layers(4)


def test_coefficients_alone_are_no_objective_and_choose_no_iterate(tmp_path: Path) -> None:
    own = {"name": "custom", "path": f"{write(tmp_path, SIZE)}:Size"}
    for content, word in (
        ({"terms": [own]}, r"objective\.terms: my-size looks at the coefficients only"),
        ({"terms": [{"name": "entropy"}], "select": [own]}, r"objective\.select: my-size looks at the coefficients"),
        (
            {"terms": [{"name": "entropy"}], "select": [{"name": "entropy"}, own]},
            r"objective\.select: my-size looks at",
        ),
    ):
        with pytest.raises(ConfigError, match=word):
            Objective(ObjectiveConfig.model_validate(content), ["a"], {"a": 3})


def test_two_terms_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, CONSTANT)
    entry = {"name": "custom", "path": f"{path}:Constant"}
    with pytest.raises(ConfigError, match="'constant' twice"):
        Objective(ObjectiveConfig.model_validate({"terms": [entry, entry]}), ["a"], {"a": 3})
    assert make_term(CustomConfig(path=f"{path}:Constant")).name == "constant"
