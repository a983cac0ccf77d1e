"""Where to measure next: learning rates placed in rounds from what finished trials tell.

`LrSearch` asks and is told, by any training loop and many processes; `search_optima` under it is a
pure function from a loss table to the next learning rates, and `SearchRule` holds its settings and
their defaults.
"""

from hptransfer.search._ask_tell import LrSearch
from hptransfer.search._search_rule import SearchRule
from hptransfer.search._search_state import Trial, read_search
from hptransfer.search.optimum_search import WidthSearch, search_optima

__all__ = [
    "LrSearch",
    "SearchRule",
    "Trial",
    "WidthSearch",
    "read_search",
    "search_optima",
]
