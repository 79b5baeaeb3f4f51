"""Stage two: students train from the cache. No teacher is imported, built or kept here."""

from kdcache.train.module import StudentModule
from kdcache.train.pipelines import AccuracyPipeline
from kdcache.train.run import StudentRun, train_student
from kdcache.train.validation import ValidationSet

__all__ = [
    "AccuracyPipeline",
    "StudentModule",
    "StudentRun",
    "ValidationSet",
    "train_student",
]
