"""The parameters of a model as they stand in it: names, shapes, and the modules that hold them."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hptransfer.adopt.layout import Layout, find_layout, is_attention, matrix_layout
from hptransfer.adopt.names import canonical_name
from hptransfer.adopt.told import Told
from hptransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A module that holds the parameter, under one of its names."""

    module: nn.Module
    leaf: str
    parent: nn.Module | None
    in_list: bool


@dataclass(frozen=True, kw_only=True)
class Found:
    """One parameter; a shared one stands once, with all its names and holders.

    Attributes
    ----------
    names : tuple of str
        The first is the one of ``named_parameters``.
    shape : tuple of int
        Its shape.
    holders : tuple of Holder
        One for each name.
    stacks : tuple of tuple of int
        Shapes of the 3-d parameters that its module holds itself, in order; what an expert stack
        is read against.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    holders: tuple[Holder, ...]
    stacks: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def owner(self) -> nn.Module:
        """The module that holds it under its first name."""
        return self.holders[0].module

    @property
    def in_list(self) -> bool:
        """Whether it stands in a list of layers."""
        return self.holders[0].in_list

    @property
    def in_attention(self) -> bool:
        """Whether its module, or the one around it, states heads."""
        around = self.holders[0].parent
        return is_attention(self.owner) or (around is not None and is_attention(around))

    def layouts(self) -> list[Layout]:
        """How each holder uses it."""
        return [find_layout(each.module, each.leaf, self.shape) for each in self.holders]

    @property
    def is_tied_table(self) -> bool:
        """Whether one holder looks it up and another multiplies with it."""
        return {"table", "matrix"} <= {layout.use for layout in self.layouts()}

    def find_layout(
        self,
        base_shape: tuple[int, ...],
        infinite: tuple[int, ...],
        *,
        widths: tuple[int, int],
        told: Told | None,
    ) -> Layout:
        """Return how the parameter is stored and used.

        Parameters
        ----------
        base_shape : tuple of int
            Its shape at the base width.
        infinite : tuple of int
            Dimensions that grow.
        widths : tuple of int
            The width and the base width.
        told : Told or None
            What the user says of it; used where the module is not known.

        Raises
        ------
        ConfigError
            If the user says that a matrix is stored in another way than its module does.
        """
        layouts = self.layouts()
        tables = [each for each in layouts if each.use == "table"]
        known = tables[0] if tables else layouts[0]
        if any(each != known for each in layouts) and not self.is_tied_table:
            known = Layout("unknown")
        if known.use != "unknown":
            if told is not None and told.transposed and not known.transposed:
                raise ConfigError(
                    f"roles of {self.name!r}: a {type(self.owner).__name__} stores it as (fan_out, "
                    f"fan_in), found '{told.role}:transposed'"
                )
            return known
        if told is not None:
            return _told_layout(told, len(self.shape), infinite)
        return self._bare_layout(base_shape, infinite, widths=widths)

    def _bare_layout(
        self, base_shape: tuple[int, ...], infinite: tuple[int, ...], *, widths: tuple[int, int]
    ) -> Layout:
        """Return the layout of a parameter that its own module multiplies or adds."""
        ndim = len(self.shape)
        if ndim >= 2 and infinite == (ndim - 1,) and self.shape[0] == 1:
            # Broadcast over the batch: position tables and class tokens, which are added.
            return Layout("table", out=(ndim - 1,), inn=tuple(range(ndim - 1)))
        if ndim in (2, 3) and infinite == (ndim - 2, ndim - 1):
            shapes = (self.shape, base_shape)
            if all(shape[-1] == shape[-2] for shape in shapes):
                return matrix_layout(ndim)
            if ndim == 3:
                return _expert_layout(self.stacks, self.shape, widths[0])
        return Layout("unknown")


def _told_layout(told: Told, ndim: int, infinite: tuple[int, ...]) -> Layout:
    rest = tuple(i for i in range(ndim) if i not in infinite)
    if told.role in ("norm", "bias"):
        return Layout("gain" if told.role == "norm" else "bias", out=tuple(range(ndim)))
    if told.role in ("embedding", "tied"):
        return Layout("table", out=infinite, inn=rest)
    if ndim < 2:
        return Layout("unknown")
    if told.role == "readout" and len(infinite) == 1 and ndim == 2:
        return Layout("matrix", out=rest, inn=infinite, transposed=infinite == (0,))
    return matrix_layout(ndim, transposed=told.transposed)


def _expert_layout(stacks: Sequence[tuple[int, ...]], shape: tuple[int, ...], width: int) -> Layout:
    """Return the layout of a stack of expert matrices, from the first stack of its module.

    The first one (up, gate) reads the width, so the dimension that is the width is its fan-in, and
    the others are stored the same way round.
    """
    rows, columns = stacks[0][1:]
    if len(stacks) < 2 or (rows == width) == (columns == width):
        return Layout("unknown")
    return matrix_layout(len(shape), transposed=rows == width)


def list_parameters(model: nn.Module) -> list[Found]:
    """Return every parameter of a model in order, a shared one once."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        shapes[id(parameter)] = tuple(parameter.shape)

    def holder(name: str) -> Holder:
        path, _, leaf = name.rpartition(".")
        around = path.rpartition(".")[0]
        ancestors = [path.split(".")[:depth] for depth in range(1, path.count(".") + 1)]
        return Holder(
            module=modules[path],
            leaf=leaf,
            parent=modules[around] if path and around else None,
            in_list=any(isinstance(modules[".".join(a)], nn.ModuleList) for a in ancestors),
        )

    found = []
    for key, known in names.items():
        holders = tuple(holder(name) for name in known)
        own = holders[0].module.named_parameters(recurse=False)
        found.append(
            Found(
                names=tuple(canonical_name(name) for name in known),
                shape=shapes[key],
                holders=holders,
                stacks=tuple(tuple(each.shape) for _, each in own if each.dim() == 3),
            )
        )
    return found
