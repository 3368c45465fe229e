"""`debzero plan`: predicts a job's memory per rank for each sharding, from a trace of its model.

Neither a GPU nor the model's weights are needed. hardware: what there is; model_shapes, activations: what the model
needs; memory: the sum for one sharding; planner and table: all of them, side by side.
"""
