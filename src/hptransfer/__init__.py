"""Which learning rate does the big model need, known from small ones, and how wrong could it be?"""

from hptransfer._version import __version__

__all__ = ["__version__"]
