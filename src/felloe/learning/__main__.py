"""`python -m felloe.learning RECIPE`: train a model from its recipe."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from felloe.learning.progress import print_json, print_lines
from felloe.learning.recipe import RecipeError, load_recipe

_WRONG_RECIPE = 2
_WRONG_MACHINE = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 2 for a wrong recipe, 3 where this machine lacks what it takes."""
    options = _parser().parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe)
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return _WRONG_RECIPE
    try:
        from felloe.learning.build import build
        from felloe.learning.corpus import CorpusError
    except ModuleNotFoundError as error:
        print(
            f"error: {error.name} is not installed; training needs the `learn` extra and PyTorch: "
            "pip install 'felloe[learn]' torch",
            file=sys.stderr,
        )
        return _WRONG_MACHINE
    if options.steps:
        recipe = replace(recipe, training=replace(recipe.training, steps=options.steps))
    try:
        build(recipe, options.out or options.recipe.parent, print_json if options.json else print_lines)
    except CorpusError as error:
        print(f"error: {error}", file=sys.stderr)
        return _WRONG_MACHINE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m felloe.learning", description=__doc__)
    parser.add_argument("recipe", type=Path, help="a recipe.toml")
    parser.add_argument("--out", type=Path, help="folder for the files; default: the recipe's folder")
    parser.add_argument("--json", action="store_true", help="print events as JSON lines")
    parser.add_argument("--steps", type=_positive, help="train this many steps instead of the recipe's")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
