{{- define "llm-operator.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "llm-operator.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "llm-operator.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* The Service of the metrics API, its Secret, and the ClusterRole with its rights. */}}
{{- define "llm-operator.metricsApi" -}}
{{ include "llm-operator.name" . }}-metrics-api
{{- end }}

{{- define "llm-operator.selector" -}}
app.kubernetes.io/name: llm-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The pods that the operator makes (operator/llm_operator/plans/names.py). */}}
{{- define "llm-operator.runtimeSelector" -}}
app.kubernetes.io/name: llm-runtime
app.kubernetes.io/managed-by: llm-operator
{{- end }}

{{- define "llm-operator.labels" -}}
{{ include "llm-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Call with a dict: image (repository, tag, digest) and version, which an empty tag stands for. */}}
{{- define "llm-operator.image" -}}
{{- if .image.digest }}{{ .image.repository }}@{{ .image.digest }}
{{- else }}{{ .image.repository }}:{{ .image.tag | default .version }}
{{- end }}
{{- end }}

{{/* Call with a list of addresses: their ports as egress rules want them, in order and each once. */}}
{{- define "llm-operator.ports" -}}
{{- $ports := list }}
{{- range . }}
{{- $url := urlParse . }}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- $ports = append $ports (int $port) }}
{{- end }}
{{- range $ports | uniq | sortAlpha }}
- {protocol: TCP, port: {{ . }}}
{{- end }}
{{- end }}

{{/* Call with a list of ports: the egress rule for DNS. */}}
{{- define "llm-operator.dnsEgress" -}}
# DNS
- ports:
    {{- range . }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}

{{/* What the operator does in a namespace that it watches. tests/control_plane/ run the operator under these rules. */}}
{{- define "llm-operator.rules" -}}
- apiGroups: [llm-operator.dev]
  resources: [llmdeployments, apikeys]
  verbs: [get, list, watch]
- apiGroups: [llm-operator.dev]
  resources: [llmdeployments/status, apikeys/status]
  verbs: [patch]
# Owner references with blockOwnerDeletion, where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [llm-operator.dev]
  resources: [llmdeployments/finalizers, apikeys/finalizers]
  verbs: [update]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
# Through it a pod that is given a key is told from one that only has the labels.
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [get, list, watch, create, patch, delete]
# These live as long as their owner: the garbage collector deletes them.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch]
# No list and no watch: the operator reads the Secrets whose names it knows, never everybody's.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
# An annotation on a pod makes its kubelet refresh mounted keys at once.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]
{{- $selects := false }}
{{- range .Values.connections }}{{ if .namespaceSelector }}{{ $selects = true }}{{ end }}{{ end }}
{{- if $selects }}
# A connection's namespaceSelector looks at the labels of the LLMDeployment's namespace.
- apiGroups: [""]
  resources: [namespaces]
  verbs: [get]
{{- end }}
- apiGroups: [""]
  resources: [events]
  verbs: [get, list, create, patch]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [servicemonitors]
  verbs: [get, list, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]
  resources: [httproutes]
  verbs: [get, list, create, patch, delete]
- apiGroups: [keda.sh]
  resources: [scaledobjects]
  verbs: [get, list, create, patch, delete]
{{- end }}

{{/* What people may look at. */}}
{{- define "llm-operator.viewRules" -}}
- apiGroups: [llm-operator.dev]
  resources: [llmdeployments, llmdeployments/status, llmdeployments/scale, apikeys, apikeys/status]
  verbs: [get, list, watch]
{{- end }}

{{/* The operator's configuration file: operator/llm_operator/settings.py reads it. */}}
{{- define "llm-operator.config" -}}
runtimeImage: {{ include "llm-operator.image" (dict "image" .Values.runtime.image "version" .Chart.AppVersion) | quote }}
fetchResources: {{ .Values.runtime.fetchResources | toJson }}
{{- with .Values.runtime.imagePullSecrets }}
runtimePullSecrets:
{{- range . }}
- {{ .name | quote }}
{{- end }}
{{- end }}
podPolicy: {{ .Values.podPolicy | toJson }}
pollSeconds: {{ .Values.pollSeconds }}
logFormat: {{ .Values.logFormat }}
webhookPort: 8090
watchNamespaces: {{ .Values.watchNamespaces | toJson }}
{{- if or .Values.prometheusUrl .Values.prometheusAllowed }}
prometheus:
  url: {{ .Values.prometheusUrl | quote }}
  allowed: {{ .Values.prometheusAllowed | toJson }}
  boundToNamespace: {{ .Values.prometheusBoundToNamespace }}
{{- end }}
{{- if .Values.metricsApi.enabled }}
metricsApi:
  port: 8443
  service: {{ include "llm-operator.metricsApi" . }}
  clusterRole: {{ include "llm-operator.metricsApi" . }}
{{- end }}
evaluation:
  judges: {{ .Values.evaluation.judges | toJson }}
  podTemplate: {{ include "llm-operator.evaluationPod" . | fromYaml | toJson }}
lease:
  name: {{ include "llm-operator.name" . }}
  namespace: {{ .Release.Namespace }}
connections:
  {{- range $name, $connection := .Values.connections }}
  {{ $name }}:
    trackingUri: {{ $connection.trackingUri | quote }}
    workspace: {{ $connection.workspace | default "" | quote }}
    {{- with $connection.namespaceSelector }}
    namespaceSelector: {{ toJson . }}
    {{- end }}
    {{- if hasKey $connection "namespaces" }}
    namespaces: {{ $connection.namespaces | toJson }}
    {{- end }}
    {{- with $connection.artifactHosts }}
    artifactHosts: {{ toJson . }}
    {{- end }}
    writeVerdicts: {{ ternary $connection.writeVerdicts true (hasKey $connection "writeVerdicts") }}
    {{- if $connection.credentialsSecret }}
    credentialsFolder: /etc/llm-operator/connections/{{ $name }}
    caFile: /etc/llm-operator/connections/{{ $name }}/ca.crt
    {{- end }}
    {{- if $connection.podCredentialsSecret }}
    podCredentialsFolder: /etc/llm-operator/connections/{{ $name }}/pods
    {{- end }}
  {{- else }} {}
  {{- end }}
{{- end }}

{{/* What the operator reads, and its Jobs as well: the configuration, and the credentials of the connections. */}}
{{- define "llm-operator.volumeMounts" -}}
- {name: config, mountPath: /etc/llm-operator/config, readOnly: true}
{{- if include "llm-operator.connectionSecrets" . | fromYaml }}
- {name: connections, mountPath: /etc/llm-operator/connections, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "llm-operator.connectionSecrets" -}}
{{- $secrets := dict }}
{{- range $connection, $values := .Values.connections }}
{{- with $values.credentialsSecret }}{{ $_ := set $secrets $connection . }}{{ end }}
{{- with $values.podCredentialsSecret }}{{ $_ := set $secrets (printf "%s/pods" $connection) . }}{{ end }}
{{- end }}
{{- toYaml $secrets }}
{{- end }}

{{- define "llm-operator.volumes" -}}
- name: config
  configMap:
    name: {{ include "llm-operator.name" . }}
{{- with include "llm-operator.connectionSecrets" . | fromYaml }}
- name: connections
  projected:
    defaultMode: 0440
    sources:
      {{- range $folder, $secret := . }}
      - secret:
          name: {{ $secret }}
          # Of its keys, any: a server wants a token, or a name and a password, or only a CA.
          optional: true
          items:
            {{- range $key := hasSuffix "/pods" $folder | ternary (list "username" "password" "token") (list "username" "password" "token" "ca.crt" "webhookSecret") }}
            - {key: {{ $key }}, path: {{ $folder }}/{{ $key }}}
            {{- end }}
      {{- end }}
{{- end }}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- end }}

{{- define "llm-operator.evaluationSelector" -}}
app.kubernetes.io/name: llm-operator-evaluation
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The pods of evaluations: the operator's image and configuration, and no right on the cluster. */}}
{{- define "llm-operator.evaluationPod" -}}
metadata:
  labels: {{- include "llm-operator.evaluationSelector" . | nindent 4 }}
spec:
  automountServiceAccountToken: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: evaluation
      image: {{ include "llm-operator.image" (dict "image" .Values.image "version" .Chart.AppVersion) | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [python, -m, llm_operator]
      args: [--config=/etc/llm-operator/config/config.yaml]
      {{- with .Values.env }}
      env: {{- toYaml . | nindent 8 }}
      {{- end }}
      resources: {{- toYaml .Values.evaluation.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      volumeMounts: {{- include "llm-operator.volumeMounts" . | nindent 8 }}
  volumes: {{- include "llm-operator.volumes" . | nindent 4 }}
  {{- with .Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
