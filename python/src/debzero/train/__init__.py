"""`debzero train`: the launcher, each rank's program, the training loop and the engines that do its steps.

launch starts one process per rank, whose program is rank. setup brings together what a rank trains with, loop trains,
and finish writes the model and the report. An engine is a class that declares engine.Engine: a new one is a file beside
engine_plain and engine_zero, and a line in setup.
"""
