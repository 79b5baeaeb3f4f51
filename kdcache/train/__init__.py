"""Stage two: students train from the cache. No teacher is imported, built or kept here.

run.py is the front door: it joins the data (joined_data), makes the LightningModule (module) and
trains it (fit). A step: windows, step_counts, positions, hidden, finite, diagnostics. Validation:
validation, ranks, pipelines/. Settings: optimizers, schedules, trainer_options. What is kept:
output, checkpoints, record, student_run. Interruptions: termination, resume, randomness.
"""

from kdcache.train.module import StudentModule
from kdcache.train.pipelines import AccuracyPipeline
from kdcache.train.results.student_run import StudentRun
from kdcache.train.run import train_student
from kdcache.train.validation.sets import ValidationSet

__all__ = [
    "AccuracyPipeline",
    "StudentModule",
    "StudentRun",
    "ValidationSet",
    "train_student",
]
