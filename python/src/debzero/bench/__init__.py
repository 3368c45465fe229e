"""`debzero bench`: what each ZeRO stage and offload choice costs and saves, measured for one's own job on one's own machine."""
