"""The tests, one file a module.

DeepSpeed 0.19 asks py-cpuinfo for the vendor of the processor whenever it makes a CPUAdam, which
takes two seconds each time. Here it is asked once a process.
No test asks a model hub: huggingface_hub reads at its import that there is none.
"""

import functools
import os

import cpuinfo

os.environ.setdefault("HF_HUB_OFFLINE", "1")

cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
