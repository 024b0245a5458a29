"""Search spaces: tensor groups, bounded variables, and the one translation between a vector and coefficients."""
