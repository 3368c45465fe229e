"""`debzero train`: the launcher, each rank's program, the training loop and the engines that do its steps.

An engine is a class with the methods of engine.Engine; a new one is a file beside engine_plain and engine_zero.
"""
