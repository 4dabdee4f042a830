"""The tests, one file a module.

DeepSpeed 0.19 asks py-cpuinfo for the vendor of the processor whenever it makes a CPUAdam, which
takes two seconds each time. Here it is asked once a process.
"""

import functools

import cpuinfo

cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)
