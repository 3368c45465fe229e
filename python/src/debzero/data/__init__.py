"""Samples: where rows come from, their tokens on disk, which rank sees which one when, and the tensors of a
micro-batch.

It knows no model and no task; train.prepare brings the three together.
"""
