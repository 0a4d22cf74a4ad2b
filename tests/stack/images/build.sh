#!/usr/bin/env bash
# Builds the images of this directory under the official names that docker-compose.yml and Dockerfile ask for.
# usage: build.sh BASE [more words for the build, e.g. --network host]; ENGINE=docker for Docker
set -euo pipefail
cd "$(dirname "$0")"
base=$1
shift
top=../../..
named() { grep -oE "docker.io/$1:[^ ]+" "$top/docker-compose.yml" | head -1; }
python="docker.io/library/python:$(sed -n 's/^ARG PYTHON=//p' "$top/Dockerfile")"
for pair in "python=$python" "postgres=$(named library/postgres)" "redis=$(named library/redis)" "haproxy=$(named library/haproxy)" \
  "prometheus=$(named prom/prometheus)" "s3=$(named chrislusf/seaweedfs)"; do
  "${ENGINE:-podman}" build --build-arg "BASE=$base" --target "${pair%%=*}" --tag "${pair#*=}" "$@" .
done
