# Sourced by kd.sh in the recipe folder.
# shellcheck shell=bash
export PATH=${PWD}/utils:${PATH}
export PYTHONIOENCODING=UTF-8
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# The MKL of torch before 2.0 uses half of an AMD processor unless told otherwise.
if grep -q AuthenticAMD /proc/cpuinfo 2>/dev/null; then
    export MKL_DEBUG_CPU_TYPE=${MKL_DEBUG_CPU_TYPE:-5}
fi
