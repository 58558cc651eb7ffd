#!/bin/sh
# sbatch slurm.sh: a rank on each of two nodes, the coordinator on the first. The API answers on the first node's
# loopback; give --listen and TPLA_API_KEY to reach it from elsewhere. Change paths, nodes and time to yours.
#SBATCH --job-name=tpla
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@60

model=${MODEL:-$HOME/models/smollm2-mla}
keys=${KEYS:-$HOME/keys}
cluster=${CLUSTER:-launched-ranks.yaml}
port=${PORT:-7070}

# The first address of this node; name another where ranks reach this one by another network.
address=${ADDRESS:-$(hostname -I | cut -d' ' -f1)}
export TPLA_COORDINATOR="tcp://$address:$port"

srun tpla worker --from-env --model "$model" --keys "$keys" &
# In place of the shell: Slurm's signal lets running requests end, and the end of the coordinator ends the job.
exec tpla serve "$cluster" --model "$model" --keys "$keys" --bind "$TPLA_COORDINATOR"
