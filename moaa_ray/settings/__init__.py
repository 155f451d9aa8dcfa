"""What a recipe may say, section by section, and how it is checked; recipe.py puts the sections together."""
