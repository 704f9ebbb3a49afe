"""How numbers are written, in the report and in the pictures: one rule each.

A value that is None, NaN or infinite is written as `UNDEFINED`. What lies between 0 and 1 is never rounded to either.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial

from detector.metrics import METRICS, UNDEFINED, decimal, finite, percent

DASH = "–"  # for what is undefined, where there is little room
HEAT = {"heat_share": percent, "pointing_game": percent, "ratio": partial(decimal, digits=2)}  # of `localisation`


def signed(value: float | None) -> str:
    """A difference: "+0.012"."""
    return UNDEFINED if math.isnan(finite(value)) else f"{value:+.3f}"


def points(value: float | None) -> str:
    """A difference of two shares: "2.5 percentage points"."""
    value = finite(value)
    if math.isnan(value):
        return UNDEFINED
    return f"{'less than 0.1' if 0 < value < 5e-4 else f'{value * 100:.1f}'} percentage points"


def odds(rate: float) -> str:
    """A rate strictly between 0 and 1: "1 in 20", or "about 2 in 7" where that is rounded."""
    if rate < 0.1:
        part, whole = 1, round(1 / rate)
    elif rate <= 0.9:
        part, whole = Fraction(rate).limit_denominator(10).as_integer_ratio()
    else:
        part, whole = min(round(rate * 100), 99), 100
    exact = abs(part / whole - rate) < 5e-4 * rate
    return f"{'' if exact else 'about '}{part} in {whole:,}"


def integer(value: float | None, undefined: str = DASH) -> str:
    value = finite(value)
    return undefined if math.isnan(value) else f"{value:,.0f}"


def count(n: int, noun: str) -> str:
    """1 is "1 image", 1234 is "1,234 images"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def scientific(value: float, undefined: str = DASH) -> str:
    """0.0003 is "3e-4"."""
    if math.isnan(finite(value)):
        return undefined
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}" if value else "0"


def score(p: float, threshold: float) -> str:
    """Two decimals, more where rounding would put the score on the other side of the threshold."""
    places = next((k for k in (2, 3, 4, 5) if (round(p, k) >= threshold) == (p >= threshold)), 6)
    return f"{p:.{places}f}"


def thousands(n: float) -> str:
    """Three digits at most: 1,234 is "1.23 k", 20,861,480 is "20.9 M"."""
    unit, name = next(((unit, name) for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if n >= unit), (1, ""))
    return f"{float(f'{n / unit:.3g}'):g}{name}"


def ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def listed(names: Sequence[str]) -> str:
    """Names in quotation marks: “a”, “b” and “c”."""
    names = [f"“{name}”" for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def between(low: float, high: float, form: Callable[..., str]) -> str:
    """ "2.0 to 9.1 %"."""
    return f"{form(low).removesuffix(' %')} to {form(high)}"


def form_of(metric: str) -> Callable[..., str]:
    """How a value is written of a metric, or of a number of `localisation`."""
    return HEAT.get(metric) or METRICS[metric].text


def interval(metrics: Mapping, key: str) -> str:
    """The 95 % interval of a metric, "2.0 to 9.1 %"; "" where there is none."""
    ends = metrics["intervals"].get(key)
    return between(ends["low"], ends["high"], form_of(key)) if ends else ""
