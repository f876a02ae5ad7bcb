#!/bin/sh
# A lab on an older kernel: two nodes, the pods of the guide, traffic between them.
# Called by `cargo xtask test vm` inside of the guest: smoke.sh PATH-TO-CILIUM MANIFEST
set -eu
cilium=$1
manifest=$2

finish() {
    status=$?
    if [ $status -ne 0 ]; then
        # What the agents and the API server said, and what became of the pods.
        kubectl get nodes,pods -A -o wide || true
        tail -n 30 /run/cilium-lab/smoke/logs/* || true
    fi
    "$cilium" lab down --name smoke || true
    exit $status
}
trap finish EXIT

"$cilium" lab up --name smoke --nodes 2 --timeout 300 -f "$manifest"
KUBECONFIG=$("$cilium" lab kubeconfig --name smoke)
export KUBECONFIG
kubectl wait --for=condition=Ready pod --all --timeout=240s
kubectl get pods -o wide
for pod in $(kubectl get pods -o name); do
    pod=${pod#pod/}
    [ "$pod" = client ] && continue
    for address in $(kubectl get pod "$pod" -o 'jsonpath={.status.podIPs[*].ip}'); do
        "$cilium" lab exec --name smoke client -- ping -c 2 -W 20 "$address"
    done
done
