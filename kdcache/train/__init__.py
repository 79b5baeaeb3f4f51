"""Stage two: students train from the cache. No teacher is imported, built or kept here."""

from kdcache.train.module import StudentModule
from kdcache.train.pipelines import AccuracyPipeline
from kdcache.train.run import train_student
from kdcache.train.student_run import StudentRun
from kdcache.train.validation import ValidationSet

__all__ = [
    "AccuracyPipeline",
    "StudentModule",
    "StudentRun",
    "ValidationSet",
    "train_student",
]
