"""From a recipe to the passes of a stage, and what each asks of a row; the planner and the stage both start here."""
