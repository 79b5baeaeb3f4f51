"""Losses at vocabulary scale: the logits of a whole batch, or their gradient, never exist at once.

``one_pass`` computes several losses over chunks of positions, ``chunk`` those of one chunk with
their gradient in closed form, and ``heads`` makes a chunk's logits and takes its gradient back.
"""
