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
{{- end }}
{{- with .Values.tracking.existingSecret }}
{{- include "gan-training.secretEnv" (dict "secret" . "keys" (list "MLFLOW_TRACKING_USERNAME" "MLFLOW_TRACKING_PASSWORD")) }}
{{- end }}
{{- end }}

{{- define "gan-training.secretEnv" -}}
{{- $secret := .secret }}
{{- range .keys }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ . }}
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
{{- end }}

{{/* For pods that only call: a submitter, a test. */}}
{{- define "gan-training.clientVolumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
- name: scratch
  emptyDir:
    sizeLimit: 1Gi
{{- end }}

{{- define "gan-training.clientContainer" -}}
image: {{ include "gan-training.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
workingDir: /app
securityContext:
  {{- include "gan-training.containerSecurity" . | nindent 2 }}
resources:
  {{- include "gan-training.resources" (dict "cpus" 1 "memory" "2Gi") | trim | nindent 2 }}
volumeMounts:
  - name: tmp
    mountPath: /tmp
  - name: scratch
    mountPath: /scratch
{{- end }}

{{- define "gan-training.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
