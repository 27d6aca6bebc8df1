{{- define "gan-training.name" -}}
{{- .Release.Name | trunc 38 | trimSuffix "-" -}}
{{- end }}

{{- define "gan-training.labels" -}}
{{ include "gan-training.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Not app.kubernetes.io/name: KubeRay's head Service selects by its own value of that label. */}}
{{- define "gan-training.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: gan-training
{{- end }}

{{- define "gan-training.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- define "gan-training.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "gan-training.name" .) -}}
{{- end }}

{{/* The Service of KubeRay, and the Secret of its token, are named after the RayCluster. */}}
{{- define "gan-training.tokenSecret" -}}
{{- .Values.ray.tokenSecret | default (include "gan-training.name" .) -}}
{{- end }}

{{- define "gan-training.dashboard" -}}
http://{{ include "gan-training.name" . }}-head-svc.{{ .Release.Namespace }}.svc:8265
{{- end }}

{{/* The name of the dependency's Service follows from the release's, as its own templates have it. */}}
{{- define "gan-training.trackingUri" -}}
{{- if .Values.tracking.uri -}}
{{- .Values.tracking.uri -}}
{{- else if .Values.install.mlflow -}}
{{- $name := contains "mlflow" .Release.Name | ternary .Release.Name (printf "%s-mlflow" .Release.Name) -}}
{{- printf "http://%s:%v" ($name | trunc 63 | trimSuffix "-") .Values.mlflow.service.port -}}
{{- end -}}
{{- end }}

{{/* The groups of workers, whole: `workers`, and each of workerGroups over it. */}}
{{- define "gan-training.groups" -}}
{{- $groups := list (merge (dict "name" "workers") .Values.workers) -}}
{{- range .Values.workerGroups }}
{{- $groups = append $groups (mergeOverwrite (deepCopy $.Values.workers) .) }}
{{- end }}
{{- toYaml $groups }}
{{- end }}

{{/* A run of its own brings up its workers when it has checked all that can be checked without them. */}}
{{- define "gan-training.startsEmpty" -}}
{{- if and (eq .Values.mode "job") (not .Values.kueue.queueName) }}true{{ end -}}
{{- end }}

{{- define "gan-training.autoscaling" -}}
{{- $varies := include "gan-training.startsEmpty" . -}}
{{- range include "gan-training.groups" . | fromYamlArray }}
{{- if lt (int .minReplicas) (int .maxReplicas) }}{{ $varies = "true" }}{{ end }}
{{- end }}
{{- $varies -}}
{{- end }}

{{/* Mi of a quantity such as 512Mi or 8Gi. */}}
{{- define "gan-training.mebibytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- hasSuffix "Gi" . | ternary (mul $number 1024) $number -}}
{{- end }}

{{/* Ray's object store: half of /dev/shm, in bytes. */}}
{{- define "gan-training.objectStore" -}}
{{- mul (include "gan-training.mebibytes" . | int64) 524288 -}}
{{- end }}

{{/* Four fifths of the smallest scratch volume, in bytes, for a cache in it. */}}
{{- define "gan-training.cacheBytes" -}}
{{- $least := 0 -}}
{{- range include "gan-training.groups" . | fromYamlArray }}
{{- $size := include "gan-training.mebibytes" .scratch | int64 }}
{{- $least = ternary $size (min $least $size) (eq $least 0) }}
{{- end }}
{{- div (mul $least 1048576 4) 5 -}}
{{- end }}

{{/* The port of an http(s) address. */}}
{{- define "gan-training.port" -}}
{{- $url := urlParse . -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (eq $url.scheme "https" | ternary "443" "80") -}}
{{- end }}
