"""Where to measure next: learning rates placed in rounds from what finished trials tell.

`search_optima` is a pure function from a loss table to the next learning rates; `SearchRule` holds
its settings and their defaults. Arrays in, frozen results out: numpy and scipy only.
"""

from hptransfer.search.optimum_search import WidthSearch, search_optima
from hptransfer.search.search_rule import SearchRule

__all__ = ["SearchRule", "WidthSearch", "search_optima"]
