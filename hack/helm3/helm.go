// Package helm3 names no code of its own: go.mod holds the Helm 3 that the chart is tried with, beside the Helm 4 of
// hack/kube. Both can't be in one module, as they want different versions of what they share.
package helm3
