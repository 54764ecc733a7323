"""ElasticModel: one sequential recommender that can be read at several depths.

Item ids in, one unit-norm user vector per depth out; a score is its inner product with a unit-norm item vector,
divided by the temperature. Input ids are item index + 1 and 0 is padding, always on the left.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from fathom.training.adapters import AdaptedLinear, adapt
from fathom.training.blocks import (
    MASKED,
    POSITION_BUCKETS,
    Block,
    Context,
    TimeBias,
    block_names,
    dropout,
    make_block,
    position_buckets,
)
from fathom.training.plugins import unknown

Strategy = Literal["prefix", "nested", "permuted-prefix", "greedy", "lattice"]


def prefix_paths(depths: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Each depth runs the first layers, in order."""
    return {depth: tuple(range(depth)) for depth in depths}


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    block: str = Field(default="hstu", description="kind of layer: hstu, gated, or one that an installed package adds")
    layers: int = Field(default=16, ge=1, le=32, description="layers of the whole network")
    width: int = Field(default=64, ge=4, description="length of an item's vector; a multiple of heads")
    heads: int = Field(default=2, ge=1, description="attention heads of a layer")
    max_history: int = Field(default=200, ge=1, le=10_000, description="newest items that a request may use")
    # What lies further back reaches a layer through the layers below it. No wider than a training window, or it would
    # read distances that nothing was learned for.
    span: int = Field(default=50, ge=1, le=10_000, description="items that one layer looks back over")
    time_bias: bool = Field(default=False, description="whether attention sees the time between two items")
    dropout: float = Field(default=0.3, ge=0, lt=1, description="share of activations left out while training")
    # Scores reach 1 / temperature, and exp(80) still fits float32.
    temperature: float = Field(default=0.08, ge=0.0125, description="scores are divided by it; lower is sharper")

    @field_validator("block")
    @classmethod
    def _known_block(cls, block: str) -> str:
        if block not in block_names():
            raise ValueError(unknown("block", block, block_names()))
        return block

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ModelSettings(_Shape):
    """The shape of an ElasticModel before its catalogue is known; every depth runs the first layers, in order."""

    depths: tuple[int, ...] = Field(default=(4, 8, 12, 16), description="layers after which an exit answers")

    def for_items(self, items: int) -> "ModelConfig":
        """The shape of a model for a catalogue of this size."""
        shape = self.model_dump(exclude={"depths"})
        return ModelConfig(items=items, paths=prefix_paths(self.depths), **shape)

    @model_validator(mode="after")
    def _known_depths(self) -> Self:
        if not self.depths or not all(1 <= depth <= self.layers for depth in self.depths):
            raise ValueError(f"depths {self.depths} do not lie in 1..{self.layers}")
        return self


class ModelConfig(_Shape):
    """The shape of an ElasticModel; ``paths`` says which layers each depth executes, in order."""

    items: int = Field(ge=1)
    strategy: Strategy = "prefix"
    #: Of the adapter beside every product with weights of the layers; 0: there are none.
    adapter_rank: int = Field(default=0, ge=0)
    paths: dict[int, tuple[int, ...]] = Field(default_factory=lambda: prefix_paths((4, 8, 12, 16)))

    @model_validator(mode="after")
    def _sound_paths(self) -> Self:
        if not self.paths:
            raise ValueError("paths is empty")
        for depth, path in self.paths.items():
            if len(path) != depth or len(set(path)) != depth:
                raise ValueError(f"the path of depth {depth} must name {depth} different layers, not {path}")
            if not all(0 <= layer < self.layers for layer in path):
                raise ValueError(f"the path of depth {depth} names a layer outside 0..{self.layers - 1}: {path}")
        return self


#: Depths, or layers.
Depths = Collection[int]


class Exit(nn.Module):
    """Turns a hidden state into a unit-norm user vector: own norm, then a low-rank adapter that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        rank = max(8, width // 4)
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., width) with L2 norm 1."""
        normed = self.norm(hidden)
        user: Tensor = normed + self.up(F.silu(self.down(normed)))
        # As F.normalize, which would have an engine copy the norm to all components first.
        size: Tensor = torch.linalg.vector_norm(user, dim=-1, keepdim=True)
        return user / size.clamp_min(1e-12)


class ElasticModel(nn.Module):
    """The model of DESIGN section 5; see the module's docstring for inputs and outputs."""

    position_of_distance: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.items + 1, config.width, padding_idx=0)
        # Vectors are normalised, so their size only sets how far one step of Adam can turn them: small turns fast.
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.layers = nn.ModuleList(
            make_block(config.block, config.width, config.heads, config.dropout, time_bias=config.time_bias)
            for _ in range(config.layers)
        )
        if config.adapter_rank:
            adapt(self.layers, config.adapter_rank)
        self.exits = nn.ModuleDict({str(depth): Exit(config.width) for depth in sorted(config.paths)})
        self.time = TimeBias(config.heads) if config.time_bias else None
        self.register_buffer("position_of_distance", position_buckets(config.span), persistent=False)

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths that can be read, ascending."""
        return tuple(sorted(self.config.paths))

    @property
    def uses_timestamps(self) -> bool:
        """Whether timestamps change the result; without the time bias they are ignored."""
        return self.config.time_bias

    def block(self, index: int) -> Block:
        """Layer ``index``."""
        layer = self.layers[index]
        assert isinstance(layer, Block)
        return layer

    def item_vectors(self) -> Tensor:
        """All items, (items, width), unit norm."""
        return F.normalize(self.embedding.weight[1:], dim=-1)

    def embed(self, items: Tensor) -> Tensor:
        """Input ids (B, L) -> hidden (B, L, width): unit vectors scaled to one per component; zero for padding."""
        vectors = F.normalize(self.embedding(items), dim=-1).masked_fill((items == 0)[..., None], 0.0)
        return dropout(vectors * self.config.width**0.5, self.config.dropout, self.training)

    def context(self, items: Tensor, timestamps: Tensor | None = None, new: int | None = None) -> Context:
        """What all layers share; ``timestamps`` int64 seconds (B, L), or None for unknown times.

        ``new``: for ``Block.extend``, how many of the newest positions are computed.
        """
        newest = slice(None) if new is None else slice(items.shape[1] - new, None)
        steps = torch.arange(items.shape[1], device=items.device)
        distance = steps[:, None] - steps[None, :]
        near = distance.clamp(0, self.config.span - 1)
        hidden = (distance < 0) | (distance >= self.config.span)
        positions = self.position_of_distance[near].masked_fill(hidden, POSITION_BUCKETS)
        time = None
        if self.time is not None:
            known = torch.zeros_like(items) if timestamps is None else timestamps
            time = self.time(known, None if new is None else known[:, newest])
        dtype = self.embedding.weight.dtype
        mask = (items == 0).to(dtype)[:, None, None, :] * MASKED
        return Context(mask, positions, time)

    def run_layer(self, index: int, hidden: Tensor, context: Context, last_only: bool = False) -> Tensor:
        """Layer ``index`` on (B, L, width); with ``last_only`` only the last position is computed, (B, 1, width)."""
        out: Tensor = self.layers[index](hidden, context, last_only)
        return out

    def read_exit(self, depth: int, hidden: Tensor) -> Tensor:
        """User vectors (..., width), unit norm, from the hidden state after the last layer of ``depth``."""
        out: Tensor = self.exits[str(depth)](hidden)
        return out

    def forward(
        self, items: Tensor, timestamps: Tensor | None = None, depths: Depths | None = None, skip: Depths = ()
    ) -> dict[int, Tensor]:
        """User vectors (B, L, width) at every position for each depth (all of them by default).

        Depths whose paths begin alike share that computation. Layers in ``skip`` pass their input on unchanged.
        """
        hidden = self.hidden(items, timestamps, depths, skip)
        return {depth: self.read_exit(depth, state) for depth, state in hidden.items()}

    def hidden(
        self, items: Tensor, timestamps: Tensor | None = None, depths: Depths | None = None, skip: Depths = ()
    ) -> dict[int, Tensor]:
        """Like ``forward``, but the hidden states (B, L, width) that the exits read."""
        context = self.context(items, timestamps)
        states: dict[tuple[int, ...], Tensor] = {(): self.embed(items)}
        out = {}
        for depth in sorted(self.depths if depths is None else depths):
            path = self.config.paths[depth]
            done = max(len(known) for known in states if path[: len(known)] == known)
            for length in range(done, depth):
                state = states[path[:length]]
                layer = path[length]
                states[path[: length + 1]] = state if layer in skip else self.run_layer(layer, state, context)
            out[depth] = states[path]
        return out

    def user_vectors(self, items: Tensor, timestamps: Tensor | None = None, *, depth: int | None = None) -> Tensor:
        """User vectors (B, width) after the newest item, at ``depth`` (default: the deepest)."""
        depth = self.depths[-1] if depth is None else depth
        context = self.context(items, timestamps)
        hidden = self.embed(items)
        *full, last = self.config.paths[depth]
        for layer in full:
            hidden = self.run_layer(layer, hidden, context)
        return self.read_exit(depth, self.run_layer(last, hidden, context, last_only=True)[:, 0])

    def with_paths(self, paths: Mapping[int, Sequence[int]], strategy: Strategy) -> "ElasticModel":
        """A copy of this model that executes other layers per depth.

        Each exit starts from this model's exit of the same depth, or of the nearest one.
        """
        changed = {"paths": {depth: tuple(path) for depth, path in paths.items()}, "strategy": strategy}
        config = ModelConfig.model_validate(self.config.model_dump() | changed)
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("exits.")}
        for depth in config.paths:
            nearest = min(self.depths, key=lambda known: (abs(known - depth), known))
            for name, value in self.exits[str(nearest)].state_dict().items():
                state[f"exits.{depth}.{name}"] = value
        return ElasticModel.of(config, state).to(self.embedding.weight.device)

    def merged(self) -> "ElasticModel":
        """This model without adapters: a copy with each added to the weight beside it; itself where there are none."""
        if not self.config.adapter_rank:
            return self
        state = {name: value for name, value in self.state_dict().items() if ".lora_" not in name}
        with torch.no_grad():
            for name, module in self.named_modules():
                if isinstance(module, AdaptedLinear):
                    state[f"{name}.weight"] = module.merged()
        config = self.config.model_copy(update={"adapter_rank": 0})
        return ElasticModel.of(config, state).to(self.embedding.weight.device).train(self.training)

    @classmethod
    def of(cls, config: ModelConfig, weights: Mapping[str, Tensor]) -> Self:
        """A model with these weights (copied); leaves torch's random stream as it was."""
        with torch.random.fork_rng(devices=[]):
            model = cls(config)
        model.load_state_dict(weights)
        return model
