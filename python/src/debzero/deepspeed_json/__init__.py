"""DeepSpeed's own JSON as users write it: its keys, the lint rules with their DZ codes, and their fixes.

A new rule is a generator in rules_shape or rules_meaning and a code in lint. The JSON that debzero makes is in resolve.
"""
