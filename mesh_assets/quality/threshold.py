"""ODCS operators: a number or a value compared with what a rule demands."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any


def holds(value: Any, operator: str, threshold: Any) -> bool:  # noqa: ANN401 - any SQL value
    """Whether ``value operator threshold`` holds; nothing holds for null or NaN except ``mustNotBe``."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return operator == "mustNotBe" if threshold is not None else operator == "mustBe"
    if isinstance(value, Decimal) and isinstance(threshold, float):
        threshold = Decimal(repr(threshold))
    try:
        return _compare(value, operator, threshold)
    except TypeError:
        # A text compared with a number: they are not equal, and neither is more than the other.
        return operator == "mustNotBe"


def _compare(value: Any, operator: str, threshold: Any) -> bool:  # noqa: ANN401
    match operator:
        case "mustBe":
            return bool(value == threshold)
        case "mustNotBe":
            return bool(value != threshold)
        case "mustBeGreaterThan":
            return bool(value > threshold)
        case "mustBeGreaterOrEqualTo":
            return bool(value >= threshold)
        case "mustBeLessThan":
            return bool(value < threshold)
        case "mustBeLessOrEqualTo":
            return bool(value <= threshold)
        case "mustBeBetween":
            return bool(threshold[0] <= value <= threshold[1])
        case "mustNotBeBetween":
            return not threshold[0] <= value <= threshold[1]
    raise AssertionError(operator)


def only_zero(operator: str, threshold: object) -> bool:
    """Whether the demand on a count means that there must be none: then each row decides it alone."""
    if operator == "mustBeBetween" and isinstance(threshold, list | tuple):
        return bool(threshold[0] <= 0 <= threshold[1] < 1)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        return False
    match operator:
        case "mustBe":
            return bool(threshold == 0)
        case "mustBeLessThan":
            return 0 < threshold <= 1
        case "mustBeLessOrEqualTo":
            return 0 <= threshold < 1
    return False
