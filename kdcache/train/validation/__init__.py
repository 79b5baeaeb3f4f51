"""Validation: whole sets, each scored by its pipeline (see ``kdcache.train.pipelines``).

``sets`` deals the sets to the ranks and keeps their scores, ``ranks`` lets processes work apart
and then tell each other what they found, ``first_batches`` cuts a set short where asked to.
"""
