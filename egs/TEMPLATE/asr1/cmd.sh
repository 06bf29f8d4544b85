# How jobs are run. run_jobs.py runs them on this machine; put Kaldi's run.pl, queue.pl
# or slurm.pl (with options) here on a cluster.
# shellcheck shell=bash
export train_cmd="run_jobs.py"
export cuda_cmd="run_jobs.py"
export decode_cmd="run_jobs.py"
