"""Trainings that stop before their end, and go on.

``checkpoints`` says which states are kept, ``randomness`` what is random in them, ``resume`` how a
run goes on from one. ``termination`` makes SIGTERM a request to save first, ``lost_ranks`` tells
which process died, and ``endings`` turns each way to end into an error with the way to go on.
"""
