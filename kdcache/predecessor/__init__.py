"""Both stages behind the interface of Knowledge-Distillation-Toolkit, which this project succeeds.

The only room that sees both.
"""

from kdcache.predecessor.training import KnowledgeDistillationTraining

__all__ = ["KnowledgeDistillationTraining"]
