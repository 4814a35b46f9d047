"""A stand-in for SLURM: `sbatch`, `srun`, `squeue`, `sacct` and `scancel` on one machine.

An array's jobs run one after the other, in the background, with the variables that SLURM sets.
"""

from __future__ import annotations

import sys
from pathlib import Path

SBATCH = """\
#!{python}
import os, re, subprocess, sys
root = {root!r}
script = open(sys.argv[1]).read()
open(os.path.join(root, "submitted.sh"), "a").write(script)
array = re.search(r"#SBATCH --array=(\\d+)-(\\d+)", script)
tasks = range(int(array[1]), int(array[2]) + 1) if array else [None]
if os.fork() == 0:
    os.setsid()
    for name in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), name)
    for task in tasks:
        id = "77" if task is None else f"77_{{task}}"
        state = os.path.join(root, f"state_{{id}}")
        open(state, "w").write("RUNNING")
        env = {{**os.environ, "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1"}}
        env |= {{"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}}
        env |= {{"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "here"}}
        if task is not None:
            env |= {{"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": str(task)}}
        code = subprocess.run(["bash", sys.argv[1]], env=env).returncode
        open(state, "w").write("FAILED" if code else "COMPLETED")
    os._exit(0)
print("Submitted batch job 77")
"""

SRUN = """\
#!{python}
import os, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[2:] if words[0] in ("--output", "--error") else words[1:]
os.execvp(words[0], words)
"""

STATES = """\
#!{python}
import os
root = {root!r}
print("JobID|State|NodeList")
for name in sorted(os.listdir(root)):
    if name.startswith("state_"):
        print(f"{{name[6:]}}|{{open(os.path.join(root, name)).read()}}|here")
"""


def save_slurm(folder: Path) -> Path:
    """Writes the commands into `folder`, which belongs on PATH, and where what is submitted is kept
    in `submitted.sh`."""
    folder.mkdir(parents=True)
    commands = {"sbatch": SBATCH, "srun": SRUN, "sacct": STATES, "squeue": STATES}
    for name, text in {**commands, "scancel": "#!/bin/sh\n"}.items():
        file = folder / name
        file.write_text(text.format(python=sys.executable, root=str(folder)))
        file.chmod(0o755)
    return folder
