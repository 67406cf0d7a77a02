#!/usr/bin/env bash
# Submits one command as a Ray job from this checkout, shows its log, and ends as the job ends.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: cluster/submit.sh [--no-wait] [--install] [--address URL] [--id NAME] COMMAND [ARGUMENT...]

Runs `dasm-ray COMMAND ARGUMENT...` on a Ray cluster as a job, shows its log, and exits with 0 if the job succeeded
and with 1 if it failed or was stopped. Stopped or lost, the same line goes on from the last checkpoint.

  --no-wait       submit and return
  --install       install this checkout for the job, where the cluster's image lacks the package (torch must be there)
  --address URL   the job server [default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265, where a tunnel ends]
  --id NAME       the name of the job, to look at or stop it by [default: one is made up]

COMMAND is distill, experts, score, select or evaluate, with the arguments that it takes. Its --run (for evaluate, the
path) must be a URI or an absolute path that every node reaches. The checkout is uploaded without runs, data and .git.

  cluster/submit.sh distill configs/cifar10_ipc10_datm.yaml --run s3://my-bucket/runs/c10 \
    --set data.path=s3://my-bucket/data/cifar10 --set runtime.gpus_per_worker=1 --workers 4
TEXT
}

refuse() {
  echo "submit.sh: $1" >&2
  exit 2
}

is_shared() {
  [[ $1 == *://* || $1 == /* ]]
}

follow=1 install=0 address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265} id=
while (($#)); do
  case $1 in
    -h | --help) usage && exit 0 ;;
    --no-wait) follow=0 ;;
    --install) install=1 ;;
    --address | --id)
      (($# > 1)) || refuse "$1 needs a value; see --help"
      if [[ $1 == --id ]]; then id=$2; else address=$2; fi
      shift
      ;;
    --) shift && break ;;
    -*) refuse "$1 is no option; see --help" ;;
    *) break ;;
  esac
  shift
done
(($#)) || refuse "no command was given; see --help"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case $1 in
  distill | experts | score | select)
    (($# > 1)) || refuse "$1 needs a config, such as configs/digits.yaml"
    [[ -f $root/$2 || $2 == /* ]] || refuse "$2: there is no such file in $root; give the config right after $1"
    run=
    for ((i = 3; i <= $#; i++)); do
      case ${!i} in
        --run=*) run=${!i#--run=} ;;
        --run) next=$((i + 1)) && run=${!next-} ;;
      esac
    done
    [[ -n $run ]] || refuse "--run is missing: without it the results would stay in a temporary folder of the head"
    is_shared "$run" || refuse "--run $run: is relative to a temporary folder of the head; give a URI or an absolute path"
    ;;
  evaluate)
    (($# > 1)) || refuse "evaluate needs a run directory"
    is_shared "$2" || refuse "$2: is relative to a temporary folder of the head; give a URI or an absolute path"
    ;;
  *) refuse "$1: is no command for a cluster; distill, experts, score, select and evaluate are" ;;
esac
command -v ray >/dev/null || refuse "ray is not on the PATH; pip install 'ray[default]' in the version of the cluster"

# `ray job submit` does not look for a token by itself, and is answered 401 by a cluster that asks for one.
if [[ -z ${RAY_AUTH_MODE:-} ]]; then
  if [[ -n ${RAY_AUTH_TOKEN:-} || -f ${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token} ]]; then
    export RAY_AUTH_MODE=token
  fi
fi

environment='{"excludes": ["/runs", "/data", "/.git", "/.venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"]'
if ((install)); then
  # shellcheck disable=SC2016  # Ray replaces the variable, on the node
  environment+=', "pip": ["${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/"]'
fi
environment+='}'

options=(--address "$address" --working-dir "$root" --runtime-env-json "$environment")
if [[ -n $id ]]; then options+=(--submission-id "$id"); fi
if ((!follow)); then options+=(--no-wait); fi
exec ray job submit "${options[@]}" -- dasm-ray "$@"
