"""deploy/slurm.sh with stand-ins for Slurm's commands: `srun` is SSH to the other machine, `scontrol` takes a note.

What Slurm does itself (placing, cgroups, requeueing, the signal before the end) is not tested: there is none here.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.cluster_lab.lab import REPOSITORY, Machine, lab, missing, wait_until
from tests.cluster_lab.test_up import QUICK, copy_checkout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing()), reason=f"a lab needs: {', '.join(missing())}"),
]

SRUN = """#!/bin/bash
echo "srun $*" >> ~/slurm.log
while [[ $1 == --* ]]; do shift; done
ssh -i ~/.ssh/raylt -o StrictHostKeyChecking=no -o LogLevel=ERROR root@10.77.0.2 \\
    "source ~/.bashrc; $(export -p | grep -E ' (RAY|RAYLT|SLURM)_'); $(printf '%q ' "$@")"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> ~/slurm.log
"""
JOB = (
    "PATH=~/bin:$PATH SLURM_JOB_ID=4711 SLURM_JOB_NUM_NODES=2 SLURM_CPUS_PER_TASK=2 SLURMD_NODENAME=node1 "
    "RAYLT_ROOT={root} MLFLOW_TRACKING_URI=sqlite:///$HOME/mlflow.db exec bash {script} digits "
    + QUICK
    + " > ~/job.log 2>&1"  # a file, as Slurm's: what a job leaves running would hold a pipe open
)


def test_a_job_that_runs_out_of_time_asks_to_be_queued_again_and_then_completes():
    with lab() as ours:
        first, second = ours.machine("node1", "10.77.0.1"), ours.machine("node2", "10.77.0.2")
        prepare(first, second, ours.key)
        job = JOB.format(root=f"{ours.shared}/raylt", script=first.home / "raylt" / "raylt/cluster/deploy/slurm.sh")

        running = first.start(job)
        wait_until(lambda: len(list((ours.shared / "raylt" / "sweeps" / "digits" / "trials").glob("*/asked.json"))) >= 2, 600)
        wait_until(lambda: second.find("raylet/raylet") != [], 300)
        running_shell(first).terminate()  # what Slurm sends two minutes before the end
        running.communicate(timeout=300)
        print((first.home / "job.log").read_text())
        assert running.returncode == 143
        said = (first.home / "slurm.log").read_text().splitlines()
        assert said[0].startswith("srun --nodes=1 --ntasks=1 --exclude=node1 ray start --address=10.77.0.1:24711 --block")
        assert said[-1] == "scontrol requeue 4711"

        end_all(first, second)  # as Slurm does with what is left of a job
        again = first.run(job, timeout_s=1200)
        log = (first.home / "job.log").read_text()
        print(log)
        assert again.returncode == 0
        assert "digits: complete, 0 of 9 trials failed" in log
        end_all(first, second)


def test_without_a_store_or_outside_slurm_it_says_so():
    with lab() as ours:
        machine = ours.machine("node1", "10.77.0.1")
        script = REPOSITORY / "raylt/cluster/deploy/slurm.sh"
        assert "RAYLT_ROOT: is not set: the store" in machine.run(f"bash {script} digits").stdout
        assert "SLURM_JOB_ID: is not set: submit this with sbatch" in machine.run(f"RAYLT_ROOT=/x bash {script} digits").stdout


def prepare(first: Machine, second: Machine, key: Path) -> None:
    """The checkout on both, and Slurm's commands on the first."""
    for machine in (first, second):
        copy_checkout(machine.home / "raylt")
    shutil.copy(key, first.home / ".ssh" / "raylt")
    (first.home / "bin").mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (first.home / "bin" / name).write_text(text)
        (first.home / "bin" / name).chmod(0o755)


def running_shell(machine: Machine):
    (shell,) = [process for process in machine.find("slurm.sh") if process.name() == "bash" and "-c" not in process.cmdline()]
    return shell


def end_all(*machines: Machine) -> None:
    """Every process of a user there but sshd."""
    for machine in machines:
        for process in machine.find(sys.prefix) + machine.find("raylet/raylet") + machine.find("ray::"):
            process.kill()
