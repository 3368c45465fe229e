"""`debzero plan`: a job's memory per rank for each sharding, predicted from a trace of its model without weights or a
GPU."""
