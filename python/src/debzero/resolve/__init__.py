"""A job on this host: ranks, batch, precision, sharding, micro-batch, DeepSpeed's configuration and the swap folder.

Whoever needs to know what will run asks for a ResolvedJob; nothing here reads data or builds a model.
"""
