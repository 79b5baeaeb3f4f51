"""Stage two: students train from the cache. No teacher is imported, built or kept here.

``run`` is the front door: it joins the data (``joined_data``), makes the LightningModule
(``module``) and trains it (``fit``, with ``trainer_options``, and ``silence`` for what Lightning
says to everybody). The module is made of rooms: step/ is one training step, optimization/ its
optimiser and schedule, validation/ and pipelines/ the scores, interruption/ how a training stops
and goes on, results/ what is left behind.
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
