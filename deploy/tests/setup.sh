#!/bin/sh
# What `make test-deploy` needs beyond `make setup`: helm, kustomize, kubeconform and krew as Go modules, Kubernetes' own
# descriptions of its API, and the packages that build the image. Installs only what is missing.
set -eu
cd "$(dirname "$0")/../.."
PATH=$PWD/.tools/bin:$PATH:/usr/local/go/bin

mkdir -p .tools/bin
# name, module, version
while read -r name module version; do
    stamp=.tools/$name-$version
    [ -e "$stamp" ] && [ -x ".tools/bin/$name" ] && continue
    echo "setup: go install $module@$version (in .tools)"
    # Elsewhere, so that no go.mod of ours has a say
    (cd .tools && GOBIN=$PWD/bin GOWORK=off go install -ldflags "-s -w" "$module@$version")
    touch "$stamp"
done <<'END'
kubeconform github.com/yannh/kubeconform/cmd/kubeconform v0.7.0
kustomize sigs.k8s.io/kustomize/kustomize/v5 v5.7.1
helm helm.sh/helm/v3/cmd/helm v3.22.0
krew sigs.k8s.io/krew/cmd/krew v0.4.3
validate-krew-manifest sigs.k8s.io/krew/cmd/validate-krew-manifest v0.4.3
END

uv run --no-sync python deploy/tests/schemas.py

missing=
for package in buildah mmdebstrap; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
echo "setup: apt-get install$missing"
# shellcheck disable=SC2086
install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >/dev/null; }
install || { apt-get update -q >/dev/null && install; }
