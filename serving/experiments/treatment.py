"""What an arm changes of a request."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

from google.protobuf.json_format import ParseDict, ParseError

from fathom.edge_profiles.profile import DeviceProfile
from fathom.errors import ConfigError, InvalidRequestError, NotFoundError
from fathom.experiments.config import Treatment
from fathom.protos.fathom.v1 import recommender_pb2 as pb
from fathom.runtime.query import IndexedQuery
from fathom.selector.choice import PolicyName
from fathom.serving.requested_rules import check_rules


@dataclass(frozen=True)
class Change:
    """``depth``: exactly this one; ``max_depth``: no deeper. What is None, or empty, stays as it is."""

    bundle: str = ""
    policy: PolicyName | None = None
    depth: int | None = None
    max_depth: int | None = None
    rules: pb.Rules | None = None

    @classmethod
    def of(cls, where: str, given: Treatment) -> Self:
        """As the file says; raises ConfigError for rules that are none. ``where``: for that message."""
        rules = None
        if given.rules is not None:
            try:
                rules = ParseDict(given.rules, pb.Rules())
                check_rules(rules)
            except (ParseError, InvalidRequestError) as error:
                raise ConfigError(f"{where}: rules: {str(error).splitlines()[0]}") from None
        return cls(given.bundle or "", given.policy, given.depth, given.max_depth, rules)

    @classmethod
    def together(cls, changes: Iterable["Change"]) -> Self:
        """Of several layers; where two change the same, the first does."""
        found = cls()
        for each in changes:
            found = cls(
                found.bundle or each.bundle,
                found.policy or each.policy,
                each.depth if found.depth is None else found.depth,
                each.max_depth if found.max_depth is None else found.max_depth,
                found.rules or each.rules,
            )
        return found

    def prepared(self, request: pb.RecommendRequest) -> pb.RecommendRequest:
        """The request with what its message can say of the change; what it says itself stays."""
        if not self.bundle and self.rules is None:
            return request
        changed = pb.RecommendRequest()
        changed.CopyFrom(request)
        if self.bundle and not request.bundle:
            changed.bundle = self.bundle
        if self.rules is not None and not request.HasField("rules"):
            changed.rules.CopyFrom(self.rules)
        return changed

    def applied(self, query: IndexedQuery) -> IndexedQuery:
        """The query with the rest of it."""
        if self.depth is None and self.max_depth is None and self.policy is None:
            return query
        profile = query.profile if self.max_depth is None else capped(query.profile, self.max_depth)
        depth = self.depth if query.depth is None else query.depth
        return replace(query, depth=depth, profile=profile, policy=self.policy)


NO_CHANGE = Change()


@lru_cache(256)
def capped(profile: DeviceProfile, most: int) -> DeviceProfile:
    """A profile without the depths above ``most``; raises NotFoundError where that leaves none but depth 0."""
    depths = tuple(depth for depth in profile.depths if depth <= most)
    if not any(depths):
        raise NotFoundError(f"profile {profile.name} has no depth up to {most}")
    within = {"shallow": min(profile.shallow, depths[-1]), "deep": min(profile.deep, depths[-1])}
    nearest = {name: max(depth for depth in depths if depth <= wanted) for name, wanted in within.items()}
    return profile.model_copy(update={"depths": depths, **nearest})
