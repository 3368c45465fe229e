"""Start the worker of TensorRT on the stand-ins beside this file: `start.py WORKER`."""
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
runpy.run_path(sys.argv[1], run_name="__main__")
