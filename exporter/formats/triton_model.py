"""The Triton model (Python backend) that answers whole batches from one bundle. Copied by ``triton.py``.

Inputs and outputs are those of its config.pbtxt, each with a first axis of requests: ``item_ids``, oldest first, and
when known ``timestamps``; ``k``, 10 by default; ``depth``, to run exactly that one. Where no item is known the answer
is what is popular. It chooses, runs and searches with the code of Fathom's own server, so the answers are the same;
deadlines, queues and batches are Triton's.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # a part of Triton

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import FathomError, InvalidRequestError
from fathom.runtime.blas import limit_blas_threads
from fathom.runtime.bundle import Bundle
from fathom.runtime.engines.open import open_engine
from fathom.runtime.index_retriever import open_retriever
from fathom.runtime.item_filter import Indices, Scores
from fathom.runtime.live_catalogue import LiveCatalogue
from fathom.runtime.query import IndexedQuery, filter_of, history_of
from fathom.runtime.runner import BatchItem, BatchResult, Runner
from fathom.selector.choice import Choice, DepthRequest
from fathom.selector.chooser import DepthChooser

DEFAULT_K = 10
LARGEST_K = 1_000


class Row(NamedTuple):
    """One history of a request, and what it gets: ``found`` at once at depth 0, else when its batch has run."""

    choice: Choice
    work: BatchItem
    found: tuple[Indices, Scores] | None


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle, and the engine with the profile's depths."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self._profile = profile = DeviceProfile.model_validate_json((folder / "profile.json").read_bytes())
        self._bundle = bundle = Bundle.open(folder / "bundle")
        self._catalogue = LiveCatalogue(bundle)
        limit_blas_threads(profile.threads)
        engine = open_engine(bundle, threads=profile.threads, device="cpu")
        retriever = open_retriever(bundle, bundle.vectors, threads=profile.threads)
        self._runner = Runner(bundle, self._catalogue, engine, retriever)
        served, at_share = bundle.manifest.served_depths, bundle.complexity.at_share
        self._chooser = DepthChooser(bundle.certificate, served, policy="auto", alpha=0.01, at_share=at_share)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer, or one error, for each; all that have no error share their runs of the engine."""
        read = [self._read(request) for request in requests]
        rows = [row for each in read if isinstance(each, list) for row in each if row.found is None]
        results = iter(self._runner.run([row.choice.depth for row in rows], [row.work for row in rows]) if rows else ())
        return [_refusal(each) if isinstance(each, FathomError) else self._response(each, results) for each in read]

    def _read(self, request: Any) -> list[Row] | FathomError:
        try:
            return list(self._rows(request))
        except FathomError as error:
            return error

    def _rows(self, request: Any) -> Iterator[Row]:
        ids, times, ks, depths = (_input(request, name) for name in ("item_ids", "timestamps", "k", "depth"))
        index = self._bundle.catalogue.index
        for row, names in enumerate(ids):
            given = [index.get(name.decode(errors="replace"), -1) for name in names]
            items = np.array(given, np.int64)
            k = DEFAULT_K if ks is None else int(ks[row][0])
            if not 1 <= k <= LARGEST_K:
                raise InvalidRequestError(f"k is {k}, at least 1 and at most {LARGEST_K}")
            if times is not None and len(times[row]) != len(given):
                raise InvalidRequestError(
                    f"timestamps has {len(times[row])} values for {len(given)} items; send one per item, or none"
                )
            known = items >= 0
            fixed, seconds = None if depths is None else int(depths[row][0]), None if times is None else times[row]
            yield self._row(items[known], None if seconds is None else seconds[known], min(k, len(index)), fixed)

    def _row(self, items: Indices, seconds: Indices | None, k: int, fixed: int | None) -> Row:
        """Choose the depth of one history; at depth 0 the answer comes with it."""
        counting = self._bundle.counting
        if not items.size and (counting is None or fixed):
            raise InvalidRequestError("no item of the history is in the catalogue")
        query = IndexedQuery(items, k, self._profile, seconds, fixed)
        longest = self._bundle.manifest.model.max_history
        history = history_of(query, len(self._catalogue), longest, may_be_empty=True)
        inspect = partial(self._bundle.inspect, history.items, history.timestamps)
        choice = self._chooser.choose(DepthRequest(self._profile, history.items, inspect, fixed))
        keep = filter_of(query, history.seen, self._catalogue)
        found = counting.best(history.items, k, keep) if counting is not None and not choice.depth else None
        return Row(choice, BatchItem(history.items + 1, history.timestamps, k, keep), found)

    def _response(self, rows: list[Row], results: Iterator[Any]) -> Any:
        """The answers of one request's rows, the shorter ones filled up with nothing."""
        found = [_found(next(results)) if row.found is None else row.found for row in rows]
        if broken := [each for each in found if isinstance(each, FathomError)]:
            return _refusal(broken[0])
        shape = len(rows), max(len(items) for items, _ in found)
        names, scores = np.full(shape, b"", dtype=np.object_), np.zeros(shape, np.float32)
        ids = self._bundle.catalogue.ids
        for row, (items, best) in enumerate(found):
            names[row, : len(items)] = [ids[item].encode() for item in items.tolist()]
            scores[row, : len(items)] = best
        depths = np.array([[row.choice.depth] for row in rows], np.int32)
        why = np.array([[row.choice.why.encode()] for row in rows], dtype=np.object_)
        outputs = {"recommended": names, "scores": scores, "depth_used": depths, "why": why}
        return triton.InferenceResponse([triton.Tensor(*output) for output in outputs.items()])


def _found(result: Any) -> Any:
    return (result.indices, result.scores) if isinstance(result, BatchResult) else result


def _refusal(error: FathomError) -> Any:
    return triton.InferenceResponse([], triton.TritonError(str(error), triton.TritonError.INVALID_ARG))


def _input(request: Any, name: str) -> Any:
    """An input as numpy, None where it is not given."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()
