#!/usr/bin/env bash
# Set up and run. `./launch.sh` trains three baselines, SASRec, TedRec and MealRec on generated demo data, on its own Ray
# head, and prints a line for each; with `--verbose` a line for each epoch. `./launch.sh test` runs the same tests as
# continuous integration; `./launch.sh test --long` also runs the tests marked `long`. Each first makes .venv, unless an
# earlier call has done so.
set -euo pipefail

called_from=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
root=$PWD
log=.venv/install.log
venv=$root/.venv

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3.10 python3 python; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# faiss-gpu and faiss-cpu write the same files, so only one of the two extras can be installed.
accelerator() {
    if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
        echo gpu
    else
        echo cpu
    fi
}

# A line every 15 s until pip (a process in the background) has ended; returns its exit status.
follow_pip() {
    local waited=0
    trap "kill $1 2>/dev/null; exit 130" INT TERM # the shell lets processes in the background ignore Ctrl-C
    while kill -0 "$1" 2>/dev/null; do
        sleep 1
        waited=$((waited + 1))
        if [ $((waited % 15)) -eq 0 ] && kill -0 "$1" 2>/dev/null; then
            if grep -q '^Installing collected' "$log"; then
                printf '  %3s s: unpacking the packages\n' "$waited"
            else
                printf '  %3s s: %s packages found\n' "$waited" "$(grep -c '^Collecting' "$log" || true)"
            fi
        fi
    done
    trap - INT TERM
    wait "$1"
}

install() {
    local python extras stamp
    extras="$(accelerator),text,video,serve,onnx,docs,dev"
    stamp="$extras $(cksum <pyproject.toml) $root"
    if [ -f .venv/stamp ] && [ "$(cat .venv/stamp)" = "$stamp" ]; then
        return
    fi
    [ ! -f .venv/stamp ] || printf 'what is to be installed has changed since .venv was made; it is made anew\n'
    python=$(find_python) || fail "found no Python 3.10 to 3.13; install one and run this again"
    printf 'installing into .venv with %s (%s): about 3 GB, 3 to 5 minutes, only the first time\n' "$python" "$extras"
    rm -rf .venv
    "$python" -m venv .venv 2>/dev/null || {
        rm -rf .venv
        fail "$python cannot make a virtual environment; install its venv module (Debian, Ubuntu: apt install python3-venv)"
    }
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
        -e ".[$extras]" >"$log" 2>&1 </dev/null &
    if ! follow_pip $!; then
        grep -i '^ *error' "$log" >&2 || tail -n 20 "$log" >&2
        fail "the installation failed; all of pip's output is in $root/$log"
    fi
    printf '%s\n' "$stamp" >.venv/stamp
    printf 'installed in %s s\n' "$SECONDS"
}

# Ray cannot start from a path with spaces: use a link without spaces.
plain_path() {
    local folder
    case $venv in
    *[[:space:]]*)
        folder=$(mktemp -d /tmp/mealrec-venv-XXXXXX)
        trap 'rm -rf -- "'"$folder"'"' EXIT
        ln -s "$venv" "$folder/venv"
        venv=$folder/venv
        ;;
    esac
}

run_tests() {
    local types=.venv/mypy.log checking workers failed=0 traced
    # tracing takes a third more time: only the tests of the files whose coverage is checked are traced, in a second pass
    traced=(tests/trainer/training/test_checkpoint.py tests/trainer/batches tests/trainer/data/test_shards.py
        tests/retrieval/metrics)
    export OMP_NUM_THREADS=1
    "$venv/bin/python" -m ruff check .
    "$venv/bin/python" -m ruff format -q --check .
    PYTHONPATH=$root "$venv/bin/lint-imports"
    "$venv/bin/python" -m mypy >"$types" 2>&1 </dev/null & # beside the tests
    checking=$!
    # one process more than cores, as tests wait for other processes; tests/conftest.py says how tests are divided
    workers=$("$venv/bin/python" -c 'import os; print((os.cpu_count() or 1) + 1)')
    "$venv/bin/python" -m pytest -n "$workers" --durations=10 "${traced[@]/#/--ignore=}" </dev/null || failed=$?
    "$venv/bin/python" -m pytest -n "$workers" "${traced[@]}" \
        --cov=trainer.training.checkpoint --cov=trainer.batches.plan --cov=trainer.data.format.shards \
        --cov=retrieval.metrics --cov-branch --cov-report=term-missing:skip-covered --cov-fail-under=95 \
        </dev/null || failed=$?
    wait "$checking" || failed=$?
    cat "$types"
    [ "$failed" -eq 0 ] || exit "$failed"
    if [ "$1" = long ]; then # -rP prints what each of them found
        "$venv/bin/python" -m pytest -m long -n "$workers" --durations=0 -rP </dev/null
    fi
}

# The name of a run cannot be used twice: the second demo is demo-2, and so on.
free_name() {
    local name=demo number=1
    while compgen -G "runs/$name-[a-z]*" >/dev/null || [ -e "runs/$name" ]; do
        number=$((number + 1))
        name=demo-$number
    done
    echo "$name"
}

# The times are about those of an idle 2-core AMD EPYC (trainer/config/recipes/demo.yaml says what was measured).
say_plan() {
    local installing="about 3 GB, 3 to 5 minutes, only the first time"
    [ ! -f .venv/stamp ] || installing="done before"
    cat <<TEXT
MealRec demo: three baselines and three trained systems predict the next video of 2,500 generated users.
  1. install into .venv      $installing
  2. generate data/demo      2,500 users, 4,000 videos, 10 s
  3. train and compare       six systems, one line each (--verbose: one line an epoch), about 4 minutes on 2 cores
Everything stays in this folder ($root), about 3.1 GB; Ctrl-C stops it.

TEXT
}

run_demo() {
    local name job status=0 gpus=0 cpus
    if [ ! -f data/demo/manifest.json ]; then
        rm -rf data/demo
        mkdir -p data
        "$venv/bin/python" -m trainer.cli prepare synthetic --quiet --out data/demo
    fi
    name=$(free_name)
    [ "$(accelerator)" = gpu ] && gpus=$(nvidia-smi -L | grep -c GPU)
    cpus=$("$venv/bin/python" -c 'import os; print(max(4, os.cpu_count() or 4))')
    printf 'training as runs/%s-*; the first line comes when Ray has started\n' "$name"
    # cluster.jobs starts a Ray head on 127.0.0.1 and stops it when the job has ended, also if this script is interrupted.
    "$venv/bin/python" -m cluster.jobs --cpus "$cpus" --gpus "$gpus" -- python trainer/run.py ${1:+"$1"} \
        --recipe demo --model popularity,content-knn,transition-knn,sasrec,tedrec,mealrec \
        --data data/demo --name "$name" </dev/null &
    job=$!
    trap 'kill -TERM "$job" 2>/dev/null || true' INT TERM
    wait "$job" || status=$?
    while kill -0 "$job" 2>/dev/null; do wait "$job" || status=$?; done
    trap - INT TERM
    [ "$status" -eq 0 ] || exit "$status"
    say_end
}

say_end() {
    cat <<TEXT

What to make of it: these users follow their last video by a fixed rule, so counting transitions is hard to beat here,
and no system can pass the line "best possible". As on a platform, a video has six views, some are new, some clicks are
accidents and most frames are filler. On a log of people the order is another: docs/results.md.
Your own log, once the environment is active (docs/your-data.md says what is read):

  mealrec prepare table --file log.csv --user user --item item --time time --out data/mine
TEXT
    [ "$called_from" = "$root" ] || printf '\nThe commands above are for this folder: cd %q\n' "$root"
}

case "$*" in
"" | demo | --verbose | "demo --verbose")
    amount=--brief
    case "$*" in *--verbose) amount= ;; esac
    say_plan
    install
    plain_path
    run_demo "$amount"
    ;;
test)
    install
    plain_path
    run_tests short
    ;;
"test --long")
    install
    plain_path
    run_tests long
    ;;
*)
    fail "usage: ./launch.sh [--verbose], or ./launch.sh test [--long]"
    ;;
esac
