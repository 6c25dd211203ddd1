# The body of every job: launch/submit.py writes a header above it that sets
#   python  command  logs  ranks_per_node  max_attempts
set -uo pipefail

say() { echo "$(date '+%F %T') $*"; }

# A task of an array needs this form: its plain number may mean the whole array.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# An attempt is one start by any job, and has its own log.
mkdir -p "$logs"
attempt=$(($(find "$logs" -name 'attempt_*.log' | wc -l) + 1))
log=$logs/$(printf 'attempt_%03d.log' "$attempt")

# Ranks meet on the first node, at the address that SLURM uses for it.
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=$(scontrol --oneliner show node "$(head -n 1 <<<"$nodes")")
master=$(sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p' <<<"$first")
port=$((20000 + SLURM_JOB_ID % 12000)) # below the ports that systems assign automatically

threads=$((${SLURM_CPUS_PER_TASK:-1} / ranks_per_node))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
PATH=$(dirname "$python"):$PATH
export PYTHONSAFEPATH=1 # the current folder may contain another eval/ or launch/

# Runs on each node: DeepSpeed's node launcher, which exits with the code of its ranks. Where SLURM
# tracks processes by cgroup, it signals this shell alone, which passes the signal on.
node() {
  local ids world="" name launcher="" signalled="" told="" code again
  ids=${CUDA_VISIBLE_DEVICES:-$(seq -s , 0 $((ranks_per_node - 1)))}
  for name in $nodes; do world+=",\"$name\": [\"${ids//,/\",\"}\"]"; done
  world=$(printf '{%s}' "${world#,}" | base64 --wrap 0 | tr '+/' '-_')
  trap '' USR1 # it would end the launcher, which inherits this; ranks install their own handlers
  trap 'signalled=yes told=yes; [ -z "$launcher" ] || kill -TERM "$launcher"' TERM
  "$python" -m deepspeed.launcher.launch --quiet --world_info "$world" \
    --node_rank "$SLURM_NODEID" --master_addr "$master" --master_port "$port" "${command[@]}" &
  launcher=$!
  trap 'signalled=yes; pkill -USR1 -P "$launcher"' USR1 # its children are the ranks
  [ -z "$told" ] || kill -TERM "$launcher"
  wait "$launcher"
  code=$?
  while [ -n "$signalled" ]; do # the signal ended the wait
    signalled=""
    wait "$launcher"
    again=$?
    [ "$again" = 127 ] || code=$again # 127: the launcher had ended before
  done
  # A launcher that is told to end stops its ranks, which save, and exits with 1. With 75 the job
  # requeues itself under preemption, too: SLURM does not requeue a job that has already ended.
  [ -z "$told" ] || [ "$code" != 1 ] || code=75
  exit "$code"
}

# SLURM signals this shell before the time limit. The ranks get the signal through srun.
asked="" step=""
trap 'asked=yes; say "asked to stop"; [ -z "$step" ] || kill -USR1 "$step"' USR1

say "attempt $attempt: job $job on $SLURM_JOB_NODELIST, log $log"
# If one launcher fails, the others are ended after five minutes. --kill-on-bad-exit would end nodes
# that are still saving their state.
srun --ntasks-per-node 1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-1}" --input none --output "${log//%/%%}" \
  --kill-on-bad-exit=0 --wait 300 \
  bash -c "$(declare -p python command ranks_per_node nodes master port; declare -f node); node" &
step=$!
wait "$step"
code=$?
if [ -n "$asked" ]; then
  # Ranks exit within 30 seconds, except one that is still loading. srun answers SIGTERM by killing
  # the ranks, so wait first.
  for _ in $(seq 45); do kill -0 "$step" 2>/dev/null && sleep 1; done
  kill -TERM "$step" 2>/dev/null
  wait "$step"
  code=$?
fi
say "attempt $attempt ended with exit code $code"

case $code in
0 | 2 | 3) exit "$code" ;; # complete, wrong input, non-finite loss: a restart would not help
75 | 4) ;;                 # stopped with the state saved; the machine failed
*) [ -n "$asked" ] || [ "$code" -gt 128 ] || exit "$code" ;; # or a rank was killed
esac
if [ "$((${SLURM_RESTART_COUNT:-0} + 1))" -ge "$max_attempts" ]; then
  say "no attempt is left of $max_attempts; submit it again to resume"
elif [ "$(squeue --noheader --jobs "$job" --format %T)" = RUNNING ]; then # and not cancelled
  say "requeued"
  scontrol requeue "$job"
  sleep 60 # SLURM ends this shell
fi
exit "$code"
