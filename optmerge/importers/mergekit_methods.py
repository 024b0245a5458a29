"""mergekit's methods as directions of a recipe: which delta a tensor gets, at which coefficient.

Methods that add up one part per expert become parts with coefficients of their own, so that densities may differ
between models. The others become the delta of a whole method, one direction for each set of settings.

    rule = RULES["ties"]
    rule.row(values, names)       # {Term("method", settings={"name": "ties", "density": 0.5, ...}): 1.0}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optmerge.errors import ConfigError
from optmerge.importers.mergekit_settings import Parameter
from optmerge.importers.mergekit_values import TensorValues

Row = dict["Term", float]
Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Term:
    """A direction: an expert's task vector, what a method makes of one expert, or a whole method.

    Attributes:
        expert: Whose it is; "" for a whole method.
        method: Its settings as pairs, () for the plain task vector. ``weights`` are pairs too.
    """

    expert: str = ""
    method: Pairs = ()

    def settings(self) -> dict[str, Any]:
        """The method's settings as a recipe has them."""
        return {key: dict(value) if key == "weights" else value for key, value in self.method}


@dataclass(frozen=True, slots=True)
class Names:
    """What the recipe calls the models.

    Attributes:
        base: Reference of the recipe's base.
        experts: Reference -> name, in the recipe's order; the base among them only if it is an expert too.
    """

    base: str
    experts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """How a method of mergekit becomes rows of a recipe.

    Attributes:
        parameters: Those that it has.
        row: One tensor's directions and coefficients.
        base: Whether a base must be there.
        all_alike: The method looks at all experts alike, so every slice must have the same models.
        base_takes_part: The base is one of the models that are averaged, so it is an expert too.
        difference: What may differ from mergekit's numbers, for the notes.
        unused: Parameter -> why it is not carried over.
    """

    parameters: tuple[Parameter, ...]
    row: Callable[[TensorValues, Names], Row]
    base: Literal["required", "optional"] = "optional"
    all_alike: bool = True
    base_takes_part: bool = False
    difference: str = ""
    unused: Mapping[str, str] = field(default_factory=dict)


def _number(value: object) -> float:
    assert isinstance(value, int | float), "parameters of the kind float"
    return float(value)


def _alike(values: TensorValues, key: str, why: str) -> float:
    """A parameter that all experts must have in common.

    Raises:
        ConfigError: They have not.
    """
    found = {model: _number(values.own[model][key]) for model in values.experts}
    if len(set(found.values())) > 1:
        shown = ", ".join(f"{model}: {value:g}" for model, value in found.items())
        raise ConfigError(
            f"The models have different values of {key} ({shown}), and {why}. Give all models one {key}, or make this "
            "merge with mergekit."
        )
    return next(iter(found.values()), 1.0)


def _weights(values: TensorValues, names: Names, *, signed: bool) -> Pairs:
    """Weights by expert; those that are not among a slice's models have 0."""
    found = {names.experts[model]: _number(values.own[model]["weight"]) for model in values.experts}
    negative = [f"{name}: {weight:g}" for name, weight in found.items() if weight < 0]
    if negative and not signed:
        raise ConfigError(
            f"A weight is negative ({', '.join(negative)}), and in optmerge the weights of a method that elects signs "
            "or averages on a sphere are 0 or more. Use task_arithmetic for negative weights, or make this merge with "
            "mergekit."
        )
    return tuple((name, found.get(name, 0.0)) for name in names.experts.values())


def _kept(density: float) -> float:
    """What mergekit makes of a density: everything from 1 on, nothing from 0 down."""
    return min(max(density, 0.0), 1.0)


def _dropped(density: float) -> float:
    if density <= 0:
        raise ConfigError(f"A density of {density:g} drops everything; expected more than 0, up to 1.")
    return round(1.0 - min(density, 1.0), 12)


def _divisor(values: TensorValues) -> float:
    """What a sum of parts is divided by: the sum of the weights, if asked for and not next to zero."""
    total = sum(_number(values.own[model]["weight"]) for model in values.experts)
    return total if values.shared["normalize"] and abs(total) >= 1e-8 else 1.0


def _rescaled(values: TensorValues, method: str) -> None:
    """Refuse mergekit's L1 norm where ours has none."""
    dense = all(_number(values.own[model]["density"]) >= 1 for model in values.experts)
    if values.shared["rescale"] and not dense:
        raise ConfigError(
            f"parameters.rescale is true, and optmerge's {method} does not rescale what it has trimmed. Set it to "
            "false (mergekit's default here), or make this merge with mergekit."
        )


def _parts(settings: Callable[[TensorValues, str], dict[str, Any]]) -> Callable[[TensorValues, Names], Row]:
    """The rule of a method that adds up one part per expert."""

    def row(values: TensorValues, names: Names) -> Row:
        scale = _number(values.shared["lambda"]) / _divisor(values)
        found: Row = {}
        for model in values.experts:
            weight = _number(values.own[model]["weight"]) * scale
            found[Term(names.experts[model], tuple(settings(values, model).items()))] = weight
        return found

    return row


def _elected(settings: Callable[[TensorValues], dict[str, Any]]) -> Callable[[TensorValues, Names], Row]:
    """The rule of a method that elects signs: one whole method for every set of weights."""

    def row(values: TensorValues, names: Names) -> Row:
        weights = _weights(values, names, signed=False)
        if not any(weight for _, weight in weights):
            return {}
        made = {**settings(values), "normalize": bool(values.shared["normalize"]), "weights": weights}
        return {Term(method=(*made.items(), ("compat", "mergekit"))): _number(values.shared["lambda"])}

    return row


ONE_DENSITY = "a method that elects signs has one for all its experts in optmerge"


def _plain(values: TensorValues, model: str) -> dict[str, Any]:
    return {}


def _dare(values: TensorValues, model: str) -> dict[str, Any]:
    drop = _dropped(_number(values.own[model]["density"]))
    return {"name": "dare", "drop": drop, "rescale": bool(values.shared["rescale"]), "compat": "mergekit"}


def _crumbs(values: TensorValues, model: str) -> dict[str, Any]:
    _rescaled(values, "breadcrumbs")
    own = values.own[model]
    kept = _kept(_number(own["density"]))
    return {"name": "breadcrumbs", "density": kept, "outliers": _number(own["gamma"]), "compat": "mergekit"}


def _della(values: TensorValues, model: str) -> dict[str, Any]:
    own = values.own[model]
    return {
        "name": "della-linear",
        "drop": _dropped(_number(own["density"])),
        "epsilon": _number(own["epsilon"]),
        "rescale": bool(values.shared["rescale"]),
        "compat": "mergekit",
    }


def _ties(values: TensorValues) -> dict[str, Any]:
    _rescaled(values, "ties")
    return {"name": "ties", "density": _kept(_alike(values, "density", ONE_DENSITY))}


def _dare_ties(values: TensorValues) -> dict[str, Any]:
    drop = _dropped(_alike(values, "density", ONE_DENSITY))
    return {"name": "dare-ties", "drop": drop, "rescale": bool(values.shared["rescale"])}


def _crumbs_ties(values: TensorValues) -> dict[str, Any]:
    _rescaled(values, "breadcrumbs-ties")
    kept, gamma = _kept(_alike(values, "density", ONE_DENSITY)), _alike(values, "gamma", ONE_DENSITY)
    return {"name": "breadcrumbs-ties", "density": kept, "outliers": gamma}


def _della_ties(values: TensorValues) -> dict[str, Any]:
    drop, epsilon = _dropped(_alike(values, "density", ONE_DENSITY)), _alike(values, "epsilon", ONE_DENSITY)
    return {"name": "della", "drop": drop, "epsilon": epsilon, "rescale": bool(values.shared["rescale"])}


def _linear(values: TensorValues, names: Names) -> Row:
    """As task vectors where the weights sum to 1, which a search can go on from; else as the sum of whole models."""
    weights = {model: _number(values.own[model]["weight"]) for model in values.models}
    total = sum(weights.values())
    if values.shared["normalize"]:
        if total == 0:
            raise ConfigError("The weights of a tensor add up to 0, and normalize divides by their sum. Change one.")
        weights = {model: weight / total for model, weight in weights.items()}
        total = 1.0
    if abs(total - 1) < 1e-12:
        return {Term(names.experts[model]): weight for model, weight in weights.items() if model != names.base}
    return {_model_sum({model: weights.get(model, 0.0) for model in names.experts}, names): 1.0}


def _model_sum(weights: Mapping[str, float], names: Names) -> Term:
    by_name = tuple((names.experts[model], weight) for model, weight in weights.items())
    return Term(method=(("name", "linear"), ("normalize", False), ("weights", by_name)))


def _slerp(values: TensorValues, names: Names) -> Row:
    if len(values.models) != 2 or values.base is None:
        raise ConfigError(
            f"slerp is between a base and one other model, and a slice has {', '.join(values.models)} with the base "
            f"{values.base}. Name one of two models as base_model."
        )
    t = _number(values.shared["t"])
    if values.base != names.base:  # a slice that interpolates from the other end
        t = 1 - t
    if not 0 <= t <= 1:
        raise ConfigError(f"The parameter t of slerp is {t:g}; expected 0 to 1.")
    if set(values.models) != {names.base, *names.experts}:
        raise ConfigError(
            f"slerp is between {' and '.join(values.models)} in one slice and other models elsewhere, and a recipe has "
            "one pair. Make one merge per pair, and put their layers together by passthrough."
        )
    return {Term(method=(("name", "slerp"), ("t", t), ("compat", "mergekit"))): 1.0}


def _nuslerp(values: TensorValues, names: Names) -> Row:
    if len(values.experts) != 2:
        raise ConfigError(f"nuslerp is between two models beside the base, and there are {len(values.experts)}.")
    first, second = (_number(values.own[model]["weight"]) for model in values.experts)
    total = first + second
    t = 0.5 if abs(total) < 1e-6 else second / total
    if not 0 <= t <= 1:
        raise ConfigError(f"The weights of nuslerp, {first:g} and {second:g}, put t at {t:g}; expected 0 to 1.")
    row_wise, flat = values.shared["nuslerp_row_wise"], values.shared["nuslerp_flatten"]
    scope = "tensor" if flat else "column" if row_wise else "row"
    settings = {"t": t, "origin": _origin(values), "scope": scope, "compat": "mergekit"}
    return {Term(method=(("name", "nuslerp"), *settings.items())): 1.0}


def _multislerp(values: TensorValues, names: Names) -> Row:
    if not values.shared["normalize_weights"]:
        raise ConfigError("normalize_weights is false, and optmerge's multislerp always divides by the sum of weights.")
    if values.shared["eps"] != 1e-8:
        raise ConfigError("eps of multislerp is fixed in optmerge (mergekit's default, 1e-8). Take the key out.")
    weights = _weights(values, names, signed=False)
    settings = {"weights": weights, "origin": _origin(values), "compat": "mergekit"}
    return {Term(method=(("name", "multislerp"), *settings.items())): 1.0}


def _karcher(values: TensorValues, names: Names) -> Row:
    steps, tolerance = int(_number(values.shared["max_iter"])), _number(values.shared["tol"])
    return {Term(method=(("name", "karcher"), ("iterations", steps), ("tolerance", tolerance))): 1.0}


def _model_stock(values: TensorValues, names: Names) -> Row:
    scope = "row" if values.shared["filter_wise"] else "tensor"
    return {Term(method=(("name", "model_stock"), ("scope", scope), ("compat", "mergekit"))): 1.0}


def _sce(values: TensorValues, names: Names) -> Row:
    density = _kept(_number(values.shared["select_topk"]))
    return {Term(method=(("name", "sce"), ("density", density), ("compat", "mergekit"))): 1.0}


def _passthrough(values: TensorValues, names: Names) -> Row:
    if len(values.models) != 1:
        raise ConfigError(f"passthrough takes one model per slice, and there are {', '.join(values.models)}.")
    (model,) = values.models
    scale = values.own[model]["scale"]
    if scale is None or scale == 1.0:
        return {Term(names.experts[model]): 1.0} if model != names.base else {}
    chosen = {other: _number(scale) if other == model else 0.0 for other in names.experts}
    return {_model_sum(chosen, names): 1.0}


def _origin(values: TensorValues) -> str:
    return "zero" if values.base is None else "base"


_INT8 = {"int8_mask": "it saves memory in mergekit and changes no number"}
_MASKS = "the masks are drawn at random: mergekit's depend on its order of work, those of optmerge on seed and tensor"
_RESCALE = {"rescale": "nothing is trimmed in task_arithmetic, so there is nothing to make up for"}
_DENSITY = {"density": "task_arithmetic trims nothing"}


def _general(normalize: bool, rescale: bool, *more: Parameter) -> tuple[Parameter, ...]:
    """The parameters of mergekit's task arithmetic in general."""
    return (
        Parameter("int8_mask", bool, default=False),
        Parameter("normalize", bool, default=normalize),
        Parameter("rescale", bool, default=rescale),
        Parameter("lambda", float, default=1.0),
        Parameter("weight", float, "non-base", required=True),
        Parameter("density", float, "non-base", default=1.0),
        *more,
    )


_GAMMA = Parameter("gamma", float, "non-base", default=0.01)
_EPSILON = Parameter("epsilon", float, "non-base", default=0.15)

RULES: dict[str, Rule] = {
    "linear": Rule(
        (Parameter("normalize", bool, default=True), Parameter("weight", float, "input", required=True)),
        _linear,
        all_alike=False,
        difference="mergekit adds up whole models, optmerge base + task vectors: they differ in the last bits",
    ),
    "task_arithmetic": Rule(
        _general(False, False), _parts(_plain), "required", False, unused=_INT8 | _RESCALE | _DENSITY
    ),
    "ties": Rule(_general(True, False), _elected(_ties), "required", False, unused=_INT8),
    "dare_linear": Rule(_general(False, True), _parts(_dare), "required", False, difference=_MASKS, unused=_INT8),
    "dare_ties": Rule(_general(False, True), _elected(_dare_ties), "required", False, difference=_MASKS, unused=_INT8),
    "breadcrumbs": Rule(_general(False, False, _GAMMA), _parts(_crumbs), "required", False, unused=_INT8),
    "breadcrumbs_ties": Rule(_general(False, False, _GAMMA), _elected(_crumbs_ties), "required", False, unused=_INT8),
    "della": Rule(
        _general(True, True, _EPSILON), _elected(_della_ties), "required", False, difference=_MASKS, unused=_INT8
    ),
    "della_linear": Rule(
        _general(False, True, _EPSILON), _parts(_della), "required", False, difference=_MASKS, unused=_INT8
    ),
    "slerp": Rule((Parameter("t", float, required=True),), _slerp, "required", False),
    "nuslerp": Rule(
        (
            Parameter("weight", float, "non-base", required=True),
            Parameter("nuslerp_row_wise", bool, default=False),
            Parameter("nuslerp_flatten", bool, default=True),
        ),
        _nuslerp,
    ),
    "multislerp": Rule(
        (
            Parameter("weight", float, "non-base", required=True),
            Parameter("normalize_weights", bool, default=True),
            Parameter("eps", float, default=1e-8),
        ),
        _multislerp,
    ),
    "karcher": Rule(
        (Parameter("max_iter", float, default=10), Parameter("tol", float, default=1e-5)),
        _karcher,
        base_takes_part=True,
    ),
    "model_stock": Rule((Parameter("filter_wise", bool, default=False),), _model_stock, "required"),
    "sce": Rule(
        (Parameter("int8_mask", bool, default=False), Parameter("select_topk", float, default=1.0)),
        _sce,
        "required",
        unused=_INT8,
    ),
    "passthrough": Rule((Parameter("scale", float, "input"),), _passthrough, all_alike=False),
}
"""mergekit's name -> its rule."""

BEYOND = {
    "ram": "entries that one model alone has changed are treated apart",
    "ramplus_tl": "entries that one model alone has changed are treated apart",
    "nearswap": "its interpolation depends on the distance entry by entry",
    "arcee_fusion": "it selects entries by a divergence of rows, with sampled quantiles",
}
"""Methods of mergekit 0.1.5 that optmerge does not have -> what they are about."""
