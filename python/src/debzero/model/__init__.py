"""The model: tasks with their losses and scores, the tokenizer, building and checking a model, its FLOPs and compiled
layers.

A new model family belongs here. It knows no data set.
"""
