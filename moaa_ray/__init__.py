"""Mixture of Agents Alignment (MoAA, arXiv 2505.03059) on Ray.

To read the code, ten files in this order:

1. recipe.py                 every setting of a run (settings/: its sections)
2. pipeline.py               the whole of MoAA on one page: the stages in order, and what each writes
3. core/mixture.py           where a prompt becomes requests, and answers become a row
4. core/judging.py           where candidates become questions to judges (core/ranking.py: and verdicts a pair)
5. generation/stage.py       the generate stage from prompts to published data; preference/ has sample and judge
6. generation/line.py        one phase of any stage as one linear Ray Data plan
7. generation/worker.py      what a pool worker does, also when its engine dies
8. data/commit.py            epochs and committed blocks: what survives a kill
9. training_stage/stage.py   a training stage from a dataset to a model folder
10. training/loop.py         the training loop: plain PyTorch, the same on one CPU and on many nodes
"""
