"""What drivers over an Optuna study share: the sampler's check, the first trials, the distributions of the variables.

In: settings and variables. A subclass has the study, in memory or in a database:

    class MineDriver(StudyDriver):
        def _set_up(self):
            super()._set_up()               # now there are self._given and self._distributions
            self._study = ...
"""

from __future__ import annotations

from typing import ClassVar

from optmerge.config.drivers import OptunaConfig
from optmerge.drivers.base import Driver
from optmerge.drivers.distributions import distributions_of
from optmerge.drivers.samplers import check_sampler


class StudyDriver(Driver):
    """Asks Optuna's samplers; the first trials are the start and the first ``known`` vectors of `Variables`.

    Raises:
        ConfigError: The sampler cannot search these variables.
    """

    name: ClassVar[str] = "optuna"
    takes_integers: ClassVar[bool] = True
    config: OptunaConfig

    def _set_up(self) -> None:
        config, variables = self.config, self.variables
        check_sampler(config, len(variables))
        self._given = [variables.start, *variables.known[: config.known]]  # the first trials
        self._distributions = distributions_of(variables)
