// The Gateway API whose CRDs tests install. Nothing here is compiled: hack/devstack/gateway.py reads the module's files.
module llm-operator.dev/hack/gateway

go 1.26.0

require sigs.k8s.io/gateway-api v1.5.1
