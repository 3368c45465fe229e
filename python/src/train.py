#!/usr/bin/env python3
"""The script of one rank, started by debzero's, torch's or DeepSpeed's own launcher:

    deepspeed --num_gpus=2 /usr/share/debzero/train.py --deepspeed deepspeed_config.json [--job JOB.yml]
"""
import sys

from debzero.train.rank import main

sys.exit(main())
