"""The model: its task (losses and scores), tokenizer, construction and checks, FLOPs and compiled layers.

A new task or model family belongs here. What needs a data set does not.
"""
