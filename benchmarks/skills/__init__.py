"""Does the loop learn? Tiny models with skills of their own, a mixture of them, and a student that is trained on it.

Read tasks.py (what is asked), specialists.py (who answers), arms.py (what the student is trained on), run.py.
"""
