"""DeepSpeed's own JSON as users write it: its keys, the lint rules with their DZ codes, and their fixes.

A new rule is a generator in one of the rules_* modules, with an entry in codes. The JSON that debzero writes is made in
resolve.
"""
