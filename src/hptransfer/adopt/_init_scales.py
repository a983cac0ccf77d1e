"""Find the scalings of initial weights, with depth above all, that a model's own init shows."""

from collections.abc import Mapping, Sequence

from hptransfer.adopt._own_init import OwnInits
from hptransfer.adopt._parameters import name_pattern, split_words
from hptransfer.adopt.role_table import ParameterRole, RoleTable

_CLOSE = 0.04


def find_init_scales(table: RoleTable, own: OwnInits) -> dict[str, tuple[float, str]]:
    """Find factors on hidden matrices' init std that the model's own init shows.

    They are 1/√(2L), 1/√L, 1/√(2(l+1)) and 1/√(l+1), with L layers and l the tensor's own, and
    1/√H on query projections, all relative to most of the hidden matrices, whose stds are taken
    as they are or times √fan_in, whichever explains more of them.

    Returns
    -------
    dict of str to (float, str)
        The factor and its formula, by parameter; without those whose factor is 1.
    """
    entries = [
        entry
        for entry in table
        if entry.role == "hidden"
        and (each := own.parameters.get(entry.name)) is not None
        and each.kind == "noise"
    ]
    tied = _tied_scales(table, own)
    if len(entries) < 2:
        return tied
    best: dict[str, tuple[float, str]] = {}
    explained = (-1, 0)
    for power in (0.5, 0.0):
        relative = {e.name: own.parameters[e.name].std * e.base_fan_in**power for e in entries}
        common = _most_common(list(relative.values()))
        ratios = {name: value / common for name, value in relative.items()}
        found = _explain(entries, ratios, table)
        plain = sum(abs(r - 1) < _CLOSE for r in ratios.values())
        count = plain + len(found), plain  # of equal ones, that with fewer factors
        if count > explained:
            best, explained = found, count
    # Layers that the base lacks scale as their likes, unless the scaling is a layer's own.
    alike = {name_pattern(name): value for name, value in best.items()}
    for entry in table:
        if entry.name not in own.parameters and name_pattern(entry.name) in alike:
            factor, reason = alike[name_pattern(entry.name)]
            if "l" not in reason.replace("layers", ""):
                best[entry.name] = factor, reason
    return best | tied


def _tied_scales(table: RoleTable, own: OwnInits) -> dict[str, tuple[float, str]]:
    """Return the factor of tied tables whose own std is below 1/√width, as many are at 0.02."""
    scales = {}
    for entry in table:
        each = own.parameters.get(entry.name)
        if entry.role == "tied" and each is not None and each.kind == "noise":
            factor = each.std * entry.base_fan_out**0.5
            if factor < 1.0:
                scales[entry.name] = factor, ""
    return scales


def _most_common(values: Sequence[float]) -> float:
    """Return the largest cluster's mean; of equal ones that of the largest values."""

    def members(centre: float) -> list[float]:
        return [value for value in values if abs(value / centre - 1) < _CLOSE]

    centre = max(sorted(values, reverse=True), key=lambda value: len(members(value)))
    chosen = members(centre)
    return sum(chosen) / len(chosen)


def _explain(
    entries: Sequence[ParameterRole], ratios: Mapping[str, float], table: RoleTable
) -> dict[str, tuple[float, str]]:
    patterns: dict[str, list[ParameterRole]] = {}
    for entry in entries:
        patterns.setdefault(name_pattern(entry.name), []).append(entry)
    sizes = {each.fan_out for each in table if each.role in ("embedding", "tied") and each.is_table}
    found: dict[str, tuple[float, str]] = {}
    for pattern, members in patterns.items():
        got = [ratios[each.name] for each in members]
        close = [_CLOSE + 2 * (2 * _numel(each)) ** -0.5 for each in members]
        if all(abs(r - 1) < c for r, c in zip(got, close, strict=True)):
            continue
        layers = [int(next(p for p in e.name.split(".") if p.isdigit())) for e in members
                  if any(p.isdigit() for p in e.name.split("."))]  # fmt: skip
        num_layers = len(members)
        writes = all(each.fan_out in sizes or not sizes for each in members)
        formulas: list[tuple[str, list[float]]] = []
        if "*" in pattern and writes:
            formulas += [
                (f"1/√(2·{num_layers} layers)", [(2 * num_layers) ** -0.5] * num_layers),
                (f"1/√({num_layers} layers)", [num_layers**-0.5] * num_layers),
            ]
        if len(layers) == num_layers >= 2:
            formulas += [
                ("1/√(2(l+1))", [(2 * (k + 1)) ** -0.5 for k in layers]),
                ("1/√(l+1)", [(k + 1) ** -0.5 for k in layers]),
            ]
        if table.base_head_size and {"q", "query"} & set(split_words(members[0].name)):
            size = table.base_head_size
            formulas.append((f"1/√{size}, the head size", [size**-0.5] * num_layers))
        for reason, factors in formulas:
            if all(abs(r / f - 1) < c for r, f, c in zip(got, factors, close, strict=True)) and any(
                abs(f - 1) > 0.1 for f in factors
            ):
                for each, factor in zip(members, factors, strict=True):
                    found[each.name] = factor, reason
                break
    return found


def _numel(entry: ParameterRole) -> int:
    size = 1
    for length in entry.base_shape:
        size *= length
    return size
