"""The columns of the metrics table."""

from hptransfer.report.compare import headline
from hptransfer.report.words import say, shorten
from hptransfer.stats import Estimate, Reason


def test_the_metrics_table_adds_the_gap_and_the_price_at_the_widest_width(fit) -> None:  # type: ignore[no-untyped-def]
    gaps = {
        32.0: Estimate(value=0.3, low=0.2, high=0.4),
        128.0: Estimate(value=0.1, low=0.05, high=0.15),
    }
    price = Estimate(value=0.01, low=0.005, high=0.02)
    fits = [fit("sp", gaps=gaps, reference="mup", price=price), fit("mup", reference="mup")]
    columns = {name: (unit, estimates) for name, unit, estimates in headline(fits)}
    assert list(columns) == ["√E", "√E_out", "κ", "R(∞)", "R(128)", "price of transfer"]
    assert columns["R(128)"] == ("nats", [gaps[128.0], None])
    assert columns["R(∞)"][1][1] is None
    assert columns["price of transfer"][1][0] == price
    assert columns["√E"][1][0].value == fits[0].metrics["E"].value ** 0.5


def test_without_a_reference_there_is_no_gap_column(fit) -> None:  # type: ignore[no-untyped-def]
    names = [name for name, _, _ in headline([fit("sp"), fit("mup")])]
    assert "R(∞)" in names
    assert not any(name.startswith("R(1") for name in names)


def test_a_table_of_many_numbers_gives_one_reason() -> None:
    estimate = Estimate(
        value=None,
        status="not identified",
        reasons=tuple(Reason("text", text=t) for t in ("this", "that", "and more")),
    )
    assert say(shorten(estimate)) == "not identified: this"
    weak = Estimate(
        value=1.0,
        low=0.5,
        high=1.5,
        status="weakly identified",
        reasons=(Reason("text", text="wide"),),
    )
    assert say(shorten(weak)) == "1.0 [0.5, 1.5] (weakly identified)"
