"""Coming from elsewhere: configurations and coefficients of other tools, as recipes and search files.

`mergekit` reads a merge configuration, `evolve` one of mergekit-evolve, `adamerging` a file of coefficients. Each gives
a text to write and `Notes`: what was carried over, what was not and why. What cannot be said exactly is refused.
"""
