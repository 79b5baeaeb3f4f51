"""The user's data, for both stages: what a batch says, what a sample is, and the join with targets.

batch/ maps the leaves of a batch to inputs, labels and positions. samples/ identifies a sample,
wherever it comes from. join/ brings samples and a teacher's targets together by key and refuses
what does not belong together.
"""
