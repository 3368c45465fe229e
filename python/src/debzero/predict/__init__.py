"""`debzero predict`: a trained model's answers to texts.

What a model folder says about its inputs, the engines that compute (`engine.py` has what all of them offer), batches by
length, and the output that survives a kill. Whatever else asks a trained model comes here, too.
"""
