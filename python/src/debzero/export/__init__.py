"""`debzero export`: a trained model as a folder that other runtimes load, after a proof that it still answers the same.

The graphs, what is fused and quantised in them, the comparison with the original on the job's own held-out samples, and
the folder with all that a reader of it needs. What loads and asks an exported model is in `predict`.
"""
