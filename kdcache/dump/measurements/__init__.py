"""What is measured on the way: numbers in commit records and manifests, for reports.

``statistics`` sums up what a teacher says of its labels, ``fidelity`` how far stored targets are
from it, ``drift`` how far its output for a sample depends on the samples beside it.
"""
