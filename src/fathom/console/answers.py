"""Answers of several depths as the page shows them side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fathom.client import Recommendation
from fathom.errors import FathomError

#: Agreement is the share of this many items, as in certificates.
TOP = 10


def side_by_side(
    asked: Sequence[tuple[int | None, Recommendation | FathomError, float]], deepest: int
) -> list[dict[str, Any]]:
    """An entry per (depth that was asked for, answer or error, round trip in ms).

    ``agreement`` counts items that are also in the top 10 of the deepest depth; None where that gave no answer.
    """
    reference = next((answer for depth, answer, _ in asked if depth == deepest), None)
    best = None
    if isinstance(reference, Recommendation):
        best = {item.id for item in reference.items[:TOP]}
    return [_entry(depth, answer, round_trip_ms, best) for depth, answer, round_trip_ms in asked]


def _entry(
    depth: int | None, answer: Recommendation | FathomError, round_trip_ms: float, best: set[str] | None
) -> dict[str, Any]:
    if isinstance(answer, FathomError):
        return {"asked": depth, "error": str(answer)}
    shared = None
    if best is not None:
        shared = {"shared": sum(item.id in best for item in answer.items[:TOP]), "of": len(best)}
    return {
        "asked": depth,
        "depth": answer.depth,
        "reason": answer.reason,
        "why": answer.why,
        "complexity": answer.complexity,
        "history_used": answer.history_used,
        "unknown_items": answer.unknown_items,
        "timings": asdict(answer.timings),
        "round_trip_ms": round(round_trip_ms, 2),
        "bundle_version": answer.bundle_version,
        "agreement": shared,
        "items": [
            {
                "id": item.id,
                "title": item.title,
                "score": item.score,
                "in_deepest": best is not None and item.id in best,
            }
            for item in answer.items
        ],
    }


def reasons_of(answer: Recommendation, titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """The reasons of every item, with titles of the items of the history that they name."""
    return [
        {
            "id": item.id,
            "reasons": [{**asdict(reason), "title": titles.get(reason.item_id, "")} for reason in item.reasons],
        }
        for item in answer.items
    ]
