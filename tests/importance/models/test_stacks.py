"""Stacks of layers, by structure alone."""

from torch import nn

from fathom.importance.models.stacks import called_again, find_stacks, in_short, main_stack
from fathom.importance.models.tree import tree


def block(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.ModuleList(block() for _ in range(2))
        self.right = nn.ModuleList(block() for _ in range(3))
        self.embeddings = nn.ModuleList(nn.Embedding(9, 4) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(5))


class Stages(nn.Module):
    """As a ResNet is defined: layer1, layer2, each of several blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.layer1 = nn.Sequential(block(), block())
        self.layer2 = nn.Sequential(block(), block(), block())


def found(model: nn.Module) -> list[tuple[str, int]]:
    return [(stack.path, len(stack)) for stack in find_stacks(model)]


def test_like_modules_with_one_pattern_are_a_stack_and_others_are_none() -> None:
    assert found(TwoTowers()) == [("left.#", 2), ("right.#", 3)]
    assert main_stack(find_stacks(TwoTowers())).path == "right.#"


def test_stages_are_looked_into() -> None:
    assert found(Stages()) == [("layer#.#", 5)]
    (stack,) = find_stacks(Stages())
    assert in_short(stack.blocks) == ["layer1.0..1", "layer2.0..2"]


def test_matrices_are_layers_where_nothing_larger_is_repeated() -> None:
    mlp = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert found(mlp) == [("#", 3)]
    assert found(nn.Sequential(nn.Linear(3, 4), nn.ReLU())) == []


def test_the_layers_of_a_recurrent_module_are_a_stack() -> None:
    class Speech(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 8, num_layers=3)
            self.one = nn.LSTM(8, 8)

    (stack,) = find_stacks(Speech())
    assert (stack.path, stack.kind, stack.blocks) == ("rnn[#]", "GRU", ("rnn[0]", "rnn[1]", "rnn[2]"))


def test_a_block_inside_a_block_is_no_layer() -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(block() for _ in range(4))

    model = nn.Module()
    model.layers = nn.ModuleList(Mixture() for _ in range(3))
    assert found(model) == [("layers.#", 3)]


def test_one_block_called_several_times_is_a_stack_of_its_calls() -> None:
    model = nn.Module()
    model.only = nn.Module()
    model.only.block = block()
    assert find_stacks(model) == []
    (stack,) = called_again(model, {"only": 5, "only.block": 5})
    assert stack.blocks == ("only",) * 5


def test_the_tree_shows_each_stack_once() -> None:
    model = Stages()
    rows = tree(model, find_stacks(model))
    assert [(row.name, row.stack) for row in rows if row.stack] == [("0..1 (2 layers)", 1), ("0..2 (3 layers)", 1)]
    assert rows[0].parameters == sum(value.numel() for value in model.parameters())
    assert all(row.parameters > 0 for row in rows)


def test_blocks_in_short_name_no_others() -> None:
    paths = [f"layer.{n}" for n in (0, 1, 2, 4, 6, 7)]
    assert in_short(paths) == ["layer.0..2", "layer.4", "layer.6..7"]
    assert in_short(["a.0", "b.1", "head"]) == ["a.0", "b.1", "head"]
    assert in_short(["rnn[0]", "rnn[1]", "rnn[3]"]) == ["rnn[0..1]", "rnn[3]"]
