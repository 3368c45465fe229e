
def per_sample(config, length, task): return 1.0*length
def peak(name, precision): return None
