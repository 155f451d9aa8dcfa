"""Mixture of Agents Alignment (MoAA, arXiv 2505.03059) on Ray.

To read the code, eight files in this order:

1. recipe.py                 every setting of a run (recipe_models.py: the engines')
2. core/mixture.py           where a prompt becomes requests, and answers become a row
3. generation/stage.py       the generate stage from prompts to published data, on one page
4. generation/line.py        one phase as one linear Ray Data plan
5. generation/worker.py      what a pool worker does, also when its engine dies
6. data/commit.py            epochs and committed blocks: what survives a kill
7. training_stage/stage.py   a training stage from a dataset to a model folder
8. training/loop.py          the training loop: plain PyTorch, the same on one CPU and on many nodes
"""
