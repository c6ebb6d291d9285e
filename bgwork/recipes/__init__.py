"""Recipes: systems/<name>/recipes/<recipe>.toml, validated, overridden by key=value, and turned into training jobs and samplers.

One file an objective (`flow_matching.py` is the model): a `Recipe` with its tables, registered in `files.OBJECTIVES`.
"""

from bgwork.recipes.base import Choice, Recipe, RecipeError, Request, Trained, initial_network
from bgwork.recipes.files import default_recipe, list_recipes, load_recipe, parse_recipe, resumable, save_recipe

__all__ = [
    "Choice", "Recipe", "RecipeError", "Request", "Trained", "default_recipe", "initial_network", "list_recipes", "load_recipe",
    "parse_recipe", "resumable", "save_recipe"]
