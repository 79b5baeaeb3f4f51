"""One training step: what is counted, computed, checked and logged.

``windows`` looks one accumulation window ahead, and ``step_counts`` makes of it what the losses
are divided by. ``hidden`` puts hidden states in place of logits; ``positions`` checks that student
and targets have the same ones, ``graph`` that a gradient reaches the student, ``finite`` that the
objective stays finite, ``unlabelled`` that there are labels at all. ``logged`` and ``diagnostics``
are what is written down.
"""
