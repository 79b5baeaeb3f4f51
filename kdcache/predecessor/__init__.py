"""Both stages behind the interface of Knowledge-Distillation-Toolkit, which this project succeeds.

The only room that sees both. ``training`` is its one class, ``arguments`` what its arguments mean
here, ``calls`` how its models were called, ``devices`` how its launchers were told of them.
"""

from kdcache.predecessor.training import KnowledgeDistillationTraining

__all__ = ["KnowledgeDistillationTraining"]
