"""Benchmarks of models that answer freely: AlpacaEval 2, Arena-Hard v0.1, MT-Bench."""
