{{/* What the Pod Security Standard "restricted" asks for, and no token of Kubernetes. */}}
{{- define "gan-training.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
serviceAccountName: {{ include "gan-training.serviceAccount" . }}
securityContext:
  runAsNonRoot: true
  {{- toYaml .Values.ray.securityContext | nindent 2 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "gan-training.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  {{- with .capabilities }}
  add: {{ toJson . }}
  {{- end }}
{{- end }}

{{/* Labels and annotations of a pod of the release. */}}
{{- define "gan-training.podMetadata" -}}
labels:
  {{- include "gan-training.selector" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .root.Values.pods.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.pods.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Requests equal limits: a pod that is given less than it asked for dies in the night. */}}
{{- define "gan-training.resources" -}}
{{- range $bound := list "requests" "limits" }}
{{ $bound }}:
  cpu: {{ $.cpus | toString | quote }}
  memory: {{ $.memory }}
  {{- if $.gpus }}
  {{ $.gpuResource }}: {{ $.gpus | toString | quote }}
  {{- end }}
  {{- range $name, $count := $.extraResources }}
  {{ $name }}: {{ $count | toString | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The nodes' own environment: where S3 is, and who we are to it. */}}
{{- define "gan-training.env" -}}
- name: HOME
  value: /scratch
- name: PYTHONPATH
  value: /app
- name: RAY_USAGE_STATS_ENABLED
  value: "0"
- name: AWS_DEFAULT_REGION
  value: {{ .Values.s3.region }}
{{- with .Values.s3.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . }}
{{- end }}
{{- with .Values.s3.existingSecret }}
{{- include "gan-training.secretEnv" (dict "secret" . "keys" (list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY")) }}
{{- include "gan-training.secretEnv" (dict "secret" . "keys" (list "AWS_SESSION_TOKEN") "optional" true) }}
{{- end }}
{{- with .Values.tracking.existingSecret }}
{{- include "gan-training.secretEnv" (dict "secret" . "keys" (list "MLFLOW_TRACKING_USERNAME" "MLFLOW_TRACKING_PASSWORD")) }}
{{- end }}
{{- with .Values.tracking.tokenSecret }}
{{- include "gan-training.secretEnv" (dict "secret" . "keys" (list "MLFLOW_TRACKING_TOKEN")) }}
{{- end }}
{{- if .Values.ray.logToStdout }}
- name: RAY_LOG_TO_STDERR
  value: "1"
{{- end }}
{{- with .Values.pods.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gan-training.secretEnv" -}}
{{- $secret := .secret }}
{{- $optional := .optional }}
{{- range .keys }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ . }}
      {{- if $optional }}
      optional: true
      {{- end }}
{{- end }}
{{- end }}

{{/* All that Ray and torch write, the root being read-only. KubeRay knows ray-logs and shared-mem by name. */}}
{{- define "gan-training.rayMounts" -}}
- name: tmp
  mountPath: /tmp
- name: ray-logs
  mountPath: /tmp/ray
- name: scratch
  mountPath: /scratch
- name: shared-mem
  mountPath: /dev/shm
{{- with .Values.pods.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gan-training.rayVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 2Gi
- name: ray-logs
  emptyDir:
    sizeLimit: {{ .scratch }}
- name: scratch
  emptyDir:
    sizeLimit: {{ .scratch }}
- name: shared-mem
  emptyDir:
    medium: Memory
    sizeLimit: {{ .sharedMemory }}
{{- with .more }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* For pods that only call: a submitter, a test. */}}
{{- define "gan-training.clientVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
- name: scratch
  emptyDir:
    sizeLimit: 1Gi
{{- with .Values.pods.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "gan-training.clientContainer" -}}
image: {{ include "gan-training.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
workingDir: /app
securityContext:
  {{- include "gan-training.containerSecurity" dict | nindent 2 }}
resources:
  {{- include "gan-training.resources" (dict "cpus" 1 "memory" "2Gi") | trim | nindent 2 }}
{{- with .Values.pods.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: scratch
    mountPath: /scratch
  {{- with .Values.pods.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "gan-training.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- range $key := list "tolerations" "affinity" "topologySpreadConstraints" }}
{{- with get $ $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" }}
{{- with get $ $key }}
{{ $key }}: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* For a pod that submits jobs to the RayCluster. */}}
{{- define "gan-training.clientEnv" -}}
- name: HOME
  value: /scratch
- name: RAY_API_SERVER_ADDRESS
  value: {{ include "gan-training.dashboard" . | quote }}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "gan-training.tokenSecret" . }}
      key: auth_token
{{- with .Values.pods.env }}
{{ toYaml . }}
{{- end }}
{{- end }}
