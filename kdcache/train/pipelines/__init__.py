"""Inference pipelines: how a student is scored on a whole validation set.

``protocol`` says what a pipeline is, ``named`` has the built-in ones by name. ``accuracy`` is on
labels, ``error_rates`` on texts (``ctc`` reads them out of logits), ``distance`` on the teacher's
targets. ``built_in`` is what these share: one of ``passes`` over the set feeds any number of
metrics, ``label_scores`` among them.
"""

from kdcache.train.pipelines.accuracy import AccuracyPipeline, PerplexityPipeline
from kdcache.train.pipelines.ctc import Characters, GreedyCtc
from kdcache.train.pipelines.error_rates import ErrorRatePipeline
from kdcache.train.pipelines.named import PIPELINES, pipeline_of
from kdcache.train.pipelines.protocol import RESULT, check_pipeline, run_pipeline

__all__ = [
    "PIPELINES",
    "RESULT",
    "AccuracyPipeline",
    "Characters",
    "ErrorRatePipeline",
    "GreedyCtc",
    "PerplexityPipeline",
    "check_pipeline",
    "pipeline_of",
    "run_pipeline",
]
