"""Stage one: the teacher runs once, and what it says goes into the cache.

Nothing here is imported by stage two; the stages meet on disk. ``run`` is the front door: it makes
the job (preparation/) and starts one process or several (``launch``). In each, ``loop`` takes the
teacher over the ``work`` that is pending, batch after batch (shards/), says how far it is
(``progress``) and ends as asked (processes/). measurements/ are the numbers that commits and
manifests record. ``recompute`` asks the teacher again, to verify a cache.
"""

from kdcache.dump.preparation.job import DumpJob
from kdcache.dump.run import dump_teacher, run_job

__all__ = ["DumpJob", "dump_teacher", "run_job"]
