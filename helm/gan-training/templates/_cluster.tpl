{{/* The spec that RayCluster and RayJob share. */}}
{{- define "gan-training.clusterSpec" -}}
{{- $autoscaling := include "gan-training.autoscaling" . -}}
rayVersion: {{ .Values.ray.version | quote }}
authOptions:
  mode: token
  {{- with .Values.ray.tokenSecret }}
  secretName: {{ . }}
  {{- end }}
enableInTreeAutoscaling: {{ $autoscaling | default "false" }}
{{- if $autoscaling }}
autoscalerOptions:
  {{- include "gan-training.autoscaler" . | nindent 2 }}
{{- end }}
headGroupSpec:
  serviceType: ClusterIP
  rayStartParams:
    num-cpus: "0" # drivers and Ray's own actors alone: no worker dies with a busy head
    num-gpus: "0"
    object-store-memory: {{ include "gan-training.objectStore" .Values.head.sharedMemory | quote }}
  template:
    {{- include "gan-training.headTemplate" . | nindent 4 }}
workerGroupSpecs:
  {{- range $group := include "gan-training.groups" . | fromYamlArray }}
  {{- $least := ternary 0 (int $group.minReplicas) (eq "true" (include "gan-training.startsEmpty" $)) }}
  - groupName: {{ $group.name }}
    {{- if not $autoscaling }}
    replicas: {{ $group.minReplicas }}
    {{- else if include "gan-training.startsEmpty" $ }}
    replicas: 0
    {{- end }}
    minReplicas: {{ $least }}
    maxReplicas: {{ $group.maxReplicas }}
    rayStartParams:
      object-store-memory: {{ include "gan-training.objectStore" $group.sharedMemory | quote }}
      num-gpus: {{ $group.gpus | toString | quote }} # KubeRay would count only resources that it knows by name
    template:
      {{- include "gan-training.workerTemplate" (dict "root" $ "group" $group) | nindent 6 }}
  {{- end }}
{{- end }}

{{/* The autoscaler alone talks to Kubernetes: its token is mounted nowhere else, not beside users' code. */}}
{{- define "gan-training.autoscaler" -}}
version: v2
idleTimeoutSeconds: {{ .Values.workers.idleTimeoutSeconds }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- include "gan-training.containerSecurity" dict | nindent 2 }}
env:
  - name: HOME
    value: /tmp
resources:
  {{- include "gan-training.resources" (dict "cpus" 1 "memory" "1Gi") | trim | nindent 2 }}
volumeMounts:
  - name: autoscaler-tmp
    mountPath: /tmp
  - name: ray-logs
    mountPath: /tmp/ray
  - name: autoscaler-token
    mountPath: /var/run/secrets/kubernetes.io/serviceaccount
    readOnly: true
{{- end }}

{{/* What Kubernetes mounts by itself where automountServiceAccountToken is true. */}}
{{- define "gan-training.autoscalerVolumes" -}}
- name: autoscaler-tmp
  emptyDir:
    sizeLimit: 1Gi
- name: autoscaler-token
  projected:
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3607
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                apiVersion: v1
                fieldPath: metadata.namespace
{{- end }}

{{- define "gan-training.headTemplate" -}}
metadata:
  {{- include "gan-training.podMetadata" (dict "root" . "component" "head") | nindent 2 }}
spec:
  {{- include "gan-training.podSecurity" . | nindent 2 }}
  terminationGracePeriodSeconds: 60
  {{- with include "gan-training.placement" .Values.head | trim }}{{ . | nindent 2 }}{{ end }}
  containers:
    - name: ray-head
      image: {{ include "gan-training.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      workingDir: /app
      ports:
        - name: gcs-server
          containerPort: 6379
        - name: dashboard
          containerPort: 8265
        - name: client
          containerPort: 10001
        - name: metrics
          containerPort: 8080
        - name: run-metrics
          containerPort: {{ .Values.tracking.prometheusPort }}
      env:
        {{- include "gan-training.env" . | nindent 8 }}
        - name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
          value: "0" # no worker here has anything to save
      {{- with .Values.pods.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "gan-training.containerSecurity" dict | nindent 8 }}
      resources:
        {{- include "gan-training.resources" .Values.head | trim | nindent 8 }}
      volumeMounts:
        {{- include "gan-training.rayMounts" . | nindent 8 }}
  volumes:
    {{- include "gan-training.rayVolumes" (merge (dict "more" .Values.pods.volumes) .Values.head) | nindent 4 }}
    {{- if include "gan-training.autoscaling" . }}
    {{- include "gan-training.autoscalerVolumes" . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "gan-training.workerTemplate" -}}
{{- $root := .root -}}
{{- with .group -}}
metadata:
  {{- include "gan-training.podMetadata" (dict "root" $root "component" "worker") | nindent 2 }}
spec:
  {{- include "gan-training.podSecurity" $root | nindent 2 }}
  terminationGracePeriodSeconds: {{ add .drainSeconds 30 }}
  {{- if .hostNetwork }}
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  {{- end }}
  {{- with include "gan-training.placement" . | trim }}{{ . | nindent 2 }}{{ end }}
  containers:
    - name: ray-worker
      image: {{ include "gan-training.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      workingDir: /app
      ports:
        - name: metrics
          containerPort: 8080
      env:
        {{- include "gan-training.env" $root | nindent 8 }}
        - name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
          value: {{ .drainSeconds | toString | quote }}
        {{- with .env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $root.Values.pods.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "gan-training.containerSecurity" . | nindent 8 }}
      resources:
        {{- include "gan-training.resources" . | trim | nindent 8 }}
      volumeMounts:
        {{- include "gan-training.rayMounts" $root | nindent 8 }}
  volumes:
    {{- include "gan-training.rayVolumes" (merge (dict "more" $root.Values.pods.volumes) .) | nindent 4 }}
{{- end }}
{{- end }}
