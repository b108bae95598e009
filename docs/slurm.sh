#!/bin/bash
# A study on four nodes of a Slurm cluster: a Ray cluster inside the job, and the study on it. Submit it again if it ran out of
# time: it goes on.
#SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=1 --cpus-per-task=16
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RAY_USAGE_STATS_ENABLED=0
srun --nodes=1 --ntasks=1 -w "$head" ray start --head --port=6379 --num-cpus=16 --num-gpus=1 --block &
sleep 20
srun --nodes=3 --ntasks=3 --exclude="$head" ray start --address="$head:6379" --num-cpus=16 --num-gpus=1 --block &
sleep 20
srun --overlap --nodes=1 --ntasks=1 -w "$head" shortstack study study.yaml -o /shared/runs --ray "$head:6379"
