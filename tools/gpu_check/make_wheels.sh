#!/usr/bin/env bash
# Wheels for a GPU machine without a package index: what pyproject.toml needs and the machine has not, one version each.
#
#   tools/gpu_check/make_wheels.sh MACHINE_LIST OUT
#
# MACHINE_LIST  what the machine has, as `pip list --format=freeze` prints it there: NAME==VERSION, or NAME alone
# OUT           where the wheels go; emptied first
#
# There: python3 -m pip install --no-index --no-deps --target SITE OUT/*.whl, and SITE on PYTHONPATH. The machine is
# x86_64 Linux with CPython 3.12; this one needs a Python with pip that reaches a package index. Source packages become
# pure wheels, without compiled parts.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
machine=$(realpath "$1") out=$(realpath -m "$2") # a bare name would be a package of the index
target=(--python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none --platform any)
for tag in 2_39 2_34 2_31 2_28 2_27 2_24 2_17 2_12 2_5; do target+=(--platform "manylinux_${tag}_x86_64"); done
target+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)

rm -rf "$out"
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# tools of its own, so that the caller's environment stays as it is
"${PYTHON:-python3}" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
pip install -q 'packaging>=24' 'setuptools>=77' wheel ninja py-cpuinfo

# the wanted set grows by what each fetched wheel needs, until nothing is missing
while :; do
	"$work/venv/bin/python" "$here/wheels.py" missing "$project" "$machine" "$out" >"$work/missing"
	[ -s "$work/missing" ] || break
	while read -r requirement; do
		echo "+ $requirement"
		if ! pip download -q --no-deps --only-binary=:all: "${target[@]}" -d "$out" "$requirement" 2>"$work/error"; then
			DS_BUILD_OPS=0 DS_ACCELERATOR=cuda pip wheel -q --no-deps --no-build-isolation --no-binary=:all: -w "$out" \
				"$requirement" || {
				cat "$work/error"
				exit 1
			}
		fi
	done <"$work/missing"
done
# the project itself, from a copy, because a build writes into its folder
mkdir "$work/project"
(cd "$project" && cp -r pyproject.toml README.md LICENSE dist_moe "$work/project/")
pip wheel -q --no-deps --no-build-isolation --no-index -w "$out" "$work/project"
"$work/venv/bin/python" "$here/wheels.py" check "$project" "$machine" "$out"
