# Sourced by kd.sh in the recipe folder.
export PATH=${PWD}/utils:${PATH}
export PYTHONIOENCODING=UTF-8
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
