# shellcheck shell=bash
# Site settings of the Slurm jobs, the only file to edit for a new cluster.
#
# The batch files source it once, on the job's first node, with $repo set; srun carries what it exports to every node.
# Partition, account, time limit and memory are not here: give them to sbatch, or set SBATCH_PARTITION and so on.

: "${repo:?is set by the batch file that sources this one}"

# Environment modules, if the site has them: module load gcc cuda

# The virtual environment that `make setup` made, on a file system that all nodes see.
export PATH="$repo/.venv/bin:$PATH"

# Ranks on each node: one for each GPU (sbatch --gpus-per-node=N), without GPUs what sbatch --ntasks-per-node=N says.
export PROCESSES_PER_NODE="${SLURM_GPUS_ON_NODE:-${SLURM_NTASKS_PER_NODE:-1}}"

# DeepSpeed must be told when a job has no GPU, as it looks at the node and not at the job.
if [[ -z "${SLURM_GPUS_ON_NODE:-}" ]]; then
    export DS_ACCELERATOR=cpu
fi

# Threads of each rank: its share of the job's cores on the node.
threads=$((${SLURM_CPUS_ON_NODE:?} / PROCESSES_PER_NODE))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1))

# Where ranks meet: the first node's address as Slurm knows it, and a port below the ephemeral range that follows from
# the job's number, so that two jobs on one node do not meet each other.
first_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_ADDR="$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')"
export MASTER_ADDR
export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))

# The network interface between nodes, where the default is the wrong one:
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0

# DeepSpeed's compiled helpers: not in the user's shared cache, where a killed build blocks every later job.
export TORCH_EXTENSIONS_DIR="$repo/.cache/torch_extensions"
