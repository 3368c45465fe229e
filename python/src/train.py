#!/usr/bin/env python3
"""The script of one rank, started by debzero's, torch's or DeepSpeed's own launcher:

    deepspeed --num_gpus=2 /usr/share/debzero/train.py --deepspeed deepspeed_config.json [--job JOB.yml]
"""
import os
import sys

if sys.flags.isolated:  # by debzero's own launcher: not even this folder is searched then
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from debzero.train.rank import main  # noqa: E402 - found by the path above

sys.exit(main())
