"""Settings of a search space: how parameters are grouped, and each variable's bounds and start."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, FiniteFloat, StringConstraints, field_validator, model_validator

from optmerge.config.base import Strict

Granularity = Literal[
    "model-wise", "task-wise", "layer-wise", "layer-kind-wise", "tensor-wise", "chunk-wise", "column-wise"
]
GRANULARITIES: tuple[str, ...] = get_args(Granularity)
RecipeFile = Annotated[str, StringConstraints(pattern=r"\.ya?ml$")]


class RuleConfig(Strict):
    """Overrides for the variables whose tensors (and direction) match; the last matching rule wins."""

    match: str = Field(
        "*",
        description="glob over parameter names, or a role: embedding, attention, mlp, norm, final-norm, head, other; "
        "in a vision-language model also vision or connector",
    )
    direction: str = Field("*", description="glob over direction names")
    freeze: FiniteFloat | None = Field(None, description="keep these coefficients at this value; they are not searched")
    bounds: tuple[FiniteFloat, FiniteFloat] | None = Field(None, description="lowest and highest coefficient")
    start: FiniteFloat | None = Field(None, description="where the search starts")
    tie: str | None = Field(
        None,
        min_length=1,
        description="one variable per direction for all tensors that match, called so; rules with the same name tie "
        "theirs together",
    )
    optional: bool = Field(False, description="the rule may match nothing, as in a file for several models")

    @field_validator("tie")
    @classmethod
    def _plain(cls, tie: str | None) -> str | None:
        if tie is not None and any(sign in tie for sign in "/[]"):
            raise ValueError(f"tie is {tie!r}, and variables are called by it; leave out /, [ and ]")
        return tie


class ChunksConfig(Strict):
    """How chunk-wise coefficients are shared out: a tensor's chunks follow from its importance."""

    importance: Literal["task-vectors", "fisher"] = Field(
        "task-vectors",
        description="what makes a tensor important: task-vectors = |coefficient| x mean |task vector| x elements, "
        "summed over directions; fisher = the mean square of the objective's gradient by the coefficients of its "
        "slices at the start, on the fit split, which also says where tensors are cut (the objective needs a gradient)",
    )
    budget: FiniteFloat = Field(1.0, gt=0, description="chunks in all, as a multiple of the number of searched tensors")
    power: FiniteFloat = Field(
        0.5,
        ge=0,
        description="of importance in a tensor's share of the chunks: 0 is the same for all, 1 in proportion",
    )


class SpaceConfig(Strict):
    """A search space over coefficients."""

    granularity: Granularity = Field("tensor-wise", description="what shares one coefficient per direction")
    bounds: tuple[FiniteFloat, FiniteFloat] = Field((-1.0, 3.0), description="lowest and highest coefficient")
    start: FiniteFloat | Literal["best-baseline", "closed-form"] | RecipeFile = Field(
        "best-baseline",
        description="a coefficient for every variable; the baseline that is best on select; the best of those in "
        "closed form (which are then scored, see baselines.closed_form); or the coefficients of a recipe's file, "
        "NAME.yaml, which is then a baseline too",
    )
    normalise: Literal["none", "sum", "softmax"] = Field(
        "none",
        description="within each group, coefficients are the variables divided by their sum, or the softmax of them; "
        "bounds and start are then those of the variables, and frozen coefficients take no part",
    )
    whole: bool | Literal["straight-through"] = Field(
        False,
        description="coefficients are whole numbers within the bounds, such as the 0 and 1 of a mask: true for drivers "
        "that search whole numbers (cma, optuna, natural-niches); straight-through = they are the variables rounded, "
        "and gradients pass the rounding as if it were not there (adam, adamw, sgd)",
    )
    shared: bool = Field(
        False,
        description="one coefficient for all experts in a group, instead of one for each; a whole method among the "
        "directions keeps its own",
    )
    polynomial: int | None = Field(
        None,
        ge=0,
        le=8,
        description="coefficients are a polynomial of this degree in depth, from the first layer of a stack to its "
        "last; the variables are its control points, and what is outside the layers has its own (granularity "
        "layer-wise, layer-kind-wise or tensor-wise)",
    )
    chunks: ChunksConfig | None = Field(
        None, description="of granularity chunk-wise; a tensor that gets no chunk keeps the coefficients of the start"
    )
    rules: list[RuleConfig] = Field(default_factory=list, description="frozen groups and other bounds, by name")

    @property
    def recipe(self) -> str | None:
        """The recipe's file that the search starts from, if it does."""
        named = isinstance(self.start, str) and self.start not in ("best-baseline", "closed-form")
        return str(self.start) if named else None

    @property
    def by_fisher(self) -> bool:
        """Whether chunks need a `optmerge.runner.fisher` profile."""
        return self.chunks is not None and self.chunks.importance == "fisher"

    def at_granularity(self, granularity: Granularity) -> SpaceConfig:
        """This space in other groups, without the settings that say nothing there.

        Raises:
            ValidationError: The rest does not fit the granularity.
        """
        unused = set() if granularity == "chunk-wise" else {"chunks"}
        if granularity in ("model-wise", "task-wise"):
            unused |= {"polynomial"}  # one coefficient is a polynomial
        return SpaceConfig.model_validate(self.model_dump(exclude=unused) | {"granularity": granularity})

    @model_validator(mode="after")
    def _more_than_one(self) -> Self:
        if self.normalise != "none" and self.granularity == "model-wise":
            raise ValueError(
                f"normalise is {self.normalise}, and granularity model-wise has one number for all directions, so "
                "every coefficient would be fixed. Use granularity task-wise, or normalise: none"
            )
        return self

    @model_validator(mode="after")
    def _only_chunk_wise(self) -> Self:
        if self.chunks is not None and self.granularity != "chunk-wise":
            raise ValueError(f"chunks are of granularity chunk-wise, and granularity is {self.granularity}")
        return self

    @model_validator(mode="after")
    def _whole_tensors(self) -> Self:
        if self.polynomial is not None and self.granularity not in ("layer-wise", "layer-kind-wise", "tensor-wise"):
            raise ValueError(
                f"polynomial joins the groups of different layers, and granularity {self.granularity} has none; use "
                "layer-wise, layer-kind-wise or tensor-wise"
            )
        if any(rule.tie for rule in self.rules) and self.granularity in ("chunk-wise", "column-wise"):
            raise ValueError(
                f"a rule with tie gives tensors one variable, and granularity {self.granularity} gives their slices "
                "variables of their own; use tensor-wise"
            )
        return self

    @model_validator(mode="after")
    def _whole_numbers(self) -> Self:
        if not self.whole:
            return self
        if self.normalise != "none" or self.polynomial is not None:
            given = "polynomial" if self.polynomial is not None else f"normalise: {self.normalise}"
            raise ValueError(
                f"whole asks for whole numbers, and {given} makes others of them. Leave one of the two out"
            )
        for bounds, start in [(self.bounds, self.start), *((rule.bounds, rule.start) for rule in self.rules)]:
            numbers = [*(bounds or ()), *([start] if isinstance(start, float) else [])]
            if not all(number.is_integer() for number in numbers):
                raise ValueError(
                    f"whole asks for whole numbers, and bounds or start are {', '.join(f'{n:g}' for n in numbers)}; "
                    "give whole ones"
                )
        return self

    @model_validator(mode="after")
    def _own_variables(self) -> Self:
        joined = {
            "polynomial": self.polynomial is not None,
            "shared": self.shared,
            "a rule with tie": any(rule.tie for rule in self.rules),
        }
        name = next((name for name, given in joined.items() if given), None)
        if self.normalise != "none" and name is not None:
            raise ValueError(
                f"normalise is {self.normalise}, which needs variables that are each group's and expert's own, and "
                f"{name} joins them. Leave one of the two out"
            )
        if self.shared and self.granularity == "model-wise":
            raise ValueError("granularity model-wise has one coefficient for everything; leave shared out")
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for low, high in [self.bounds, *(rule.bounds for rule in self.rules if rule.bounds)]:
            if not low < high:
                raise ValueError(f"bounds [{low}, {high}] are not in increasing order")
        if isinstance(self.start, float) and not self.bounds[0] <= self.start <= self.bounds[1]:
            raise ValueError(f"start {self.start} lies outside bounds {list(self.bounds)}")
        return self
