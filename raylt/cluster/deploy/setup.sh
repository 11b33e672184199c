#!/usr/bin/env bash
# Makes a machine ready for raylt: its Python environment and its settings. cluster.yaml and cluster-local.yaml run it on every
# node, as often as they like:
#
#     bash ~/raylt/raylt/cluster/deploy/setup.sh STORE        # s3://BUCKET/raylt, or a folder that all machines share
set -euo pipefail

root=${1:?usage: setup.sh STORE}
project=$HOME/raylt
state=$HOME/.raylt # env: settings and secrets; installed: what ~/venv was made from; logs; on the head MLflow's database
frozen=$project/raylt/cluster/deploy/constraints.txt # what the head has installed; Ray copies it to the workers, which install the same
case $root in
s3://*) package="${project}[aws]" ;;
*) package=$project ;;
esac
is_head() { test -e ~/ray_bootstrap_config.yaml; } # Ray puts it there alone

mkdir -p "$state" ~/.ray
chmod 700 "$state" ~/.ray # settings and secrets; Ray's token

if ! cmp -s "$project/pyproject.toml" "$state/installed"; then
    if command -v cloud-init > /dev/null; then # a fresh cloud machine, still busy with itself
        cloud-init status --wait > /dev/null || true
        sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
        sudo apt-get -o DPkg::Lock::Timeout=600 -qq -y install python3-venv > /dev/null
        PATH=/usr/bin:$PATH
    fi
    python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "raylt: $(hostname) needs Python 3.11 or newer, with venv, as python3" >&2
        exit 1
    }
    python3 -m venv ~/venv
    if is_head; then
        ~/venv/bin/pip install --quiet --disable-pip-version-check --editable "$package"
        ~/venv/bin/pip freeze --exclude-editable > "$frozen"
    else
        ~/venv/bin/pip install --quiet --disable-pip-version-check --editable "$package" --constraint "$frozen"
    fi
    cp "$project/pyproject.toml" "$state/installed"
fi

# Lines of your own in ~/.raylt/env stay, and come last.
mark='# set by ray up'
umask 077
{
    echo "RAYLT_ROOT='$root' $mark"
    echo "RAY_AUTH_MODE=token $mark"
    if is_head; then echo "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 $mark"; fi
    grep -sv "$mark\$" "$state/env" || true
} > "$state/env.new"
mv "$state/env.new" "$state/env"
# shellcheck disable=SC2016 # for the shell that reads it
grep -qs raylt/env ~/.bashrc || echo 'set -a; . ~/.raylt/env; set +a; PATH=~/venv/bin:$PATH' >> ~/.bashrc
